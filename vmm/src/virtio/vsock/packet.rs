//! The header of a packet (section 5.10.6): what both sides say to each other, as bytes and as a structure.
//!
//! Pure. A header says what a guest wants it to say; whoever reads one decides what to believe.

/// Bytes of a header; the payload follows it at once.
pub const HEADER_SIZE: usize = 44;

/// The host's context id (section 5.10.4).
pub const HOST_CID: u64 = 2;

/// `VIRTIO_VSOCK_TYPE_STREAM`, the only type there is without `VIRTIO_VSOCK_F_SEQPACKET`.
pub const TYPE_STREAM: u16 = 1;

/// Values of `op`: `VIRTIO_VSOCK_OP_*`.
pub mod op {
    /// Wants a connection.
    pub const REQUEST: u16 = 1;
    /// Agrees to one.
    pub const RESPONSE: u16 = 2;
    /// Ends one, or says that there is none.
    pub const RST: u16 = 3;
    /// Will not receive, or not send, any more.
    pub const SHUTDOWN: u16 = 4;
    /// Has data.
    pub const RW: u16 = 5;
    /// Says how much room there is.
    pub const CREDIT_UPDATE: u16 = 6;
    /// Asks how much room there is.
    pub const CREDIT_REQUEST: u16 = 7;
}

/// Bits of `flags` in a SHUTDOWN: `VIRTIO_VSOCK_SHUTDOWN_F_*`.
pub mod shutdown {
    /// The sender of the packet will not receive any more.
    pub const RECEIVE: u32 = 1;
    /// The sender of the packet will not send any more.
    pub const SEND: u32 = 2;
    /// Neither.
    pub const BOTH: u32 = RECEIVE | SEND;
}

/// What a connection is known by, from its first packet to its last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ports {
    /// The host's port.
    pub host: u32,
    /// The guest's port.
    pub guest: u32,
}

/// `struct virtio_vsock_hdr`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Whom it is from.
    pub src_cid: u64,
    /// Whom it is for.
    pub dst_cid: u64,
    /// The sender's port.
    pub src_port: u32,
    /// The receiver's port.
    pub dst_port: u32,
    /// Bytes of payload.
    pub len: u32,
    /// The kind of socket.
    pub type_: u16,
    /// What it is about; see [`op`].
    pub op: u16,
    /// Details, by `op`.
    pub flags: u32,
    /// How many bytes the sender keeps at most for its reader.
    pub buf_alloc: u32,
    /// How many bytes the sender's reader has taken; wraps around.
    pub fwd_cnt: u32,
}

impl Header {
    /// A packet from the host to the guest, without payload and without credit.
    pub fn to_guest(guest_cid: u32, ports: Ports, op: u16) -> Self {
        Self {
            src_cid: HOST_CID,
            dst_cid: u64::from(guest_cid),
            src_port: ports.host,
            dst_port: ports.guest,
            type_: TYPE_STREAM,
            op,
            ..Self::default()
        }
    }

    /// The connection that a packet from the guest is about.
    pub fn ports(&self) -> Ports {
        Ports { host: self.dst_port, guest: self.src_port }
    }

    /// The header as it is in memory. All values are little-endian.
    pub fn to_bytes(self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        let mut rest = &mut bytes[..];
        let mut put = |field: &[u8]| {
            let (head, tail) = std::mem::take(&mut rest).split_at_mut(field.len());
            head.copy_from_slice(field);
            rest = tail;
        };
        put(&self.src_cid.to_le_bytes());
        put(&self.dst_cid.to_le_bytes());
        put(&self.src_port.to_le_bytes());
        put(&self.dst_port.to_le_bytes());
        put(&self.len.to_le_bytes());
        put(&self.type_.to_le_bytes());
        put(&self.op.to_le_bytes());
        put(&self.flags.to_le_bytes());
        put(&self.buf_alloc.to_le_bytes());
        put(&self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// What the bytes say. Any bytes are a header.
    pub fn from_bytes(bytes: &[u8; HEADER_SIZE]) -> Self {
        fn field<const N: usize>(bytes: &[u8; HEADER_SIZE], offset: usize) -> [u8; N] {
            std::array::from_fn(|index| bytes.get(offset + index).copied().unwrap_or(0))
        }
        Self {
            src_cid: u64::from_le_bytes(field(bytes, 0)),
            dst_cid: u64::from_le_bytes(field(bytes, 8)),
            src_port: u32::from_le_bytes(field(bytes, 16)),
            dst_port: u32::from_le_bytes(field(bytes, 20)),
            len: u32::from_le_bytes(field(bytes, 24)),
            type_: u16::from_le_bytes(field(bytes, 28)),
            op: u16::from_le_bytes(field(bytes, 30)),
            flags: u32::from_le_bytes(field(bytes, 32)),
            buf_alloc: u32::from_le_bytes(field(bytes, 36)),
            fwd_cnt: u32::from_le_bytes(field(bytes, 40)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fields_are_where_the_specification_has_them() {
        let bytes: [u8; HEADER_SIZE] = std::array::from_fn(|index| index as u8);
        let header = Header::from_bytes(&bytes);
        assert_eq!(header.src_cid, 0x0706_0504_0302_0100);
        assert_eq!(header.dst_cid, 0x0f0e_0d0c_0b0a_0908);
        assert_eq!((header.src_port, header.dst_port), (0x1312_1110, 0x1716_1514));
        assert_eq!((header.len, header.type_, header.op), (0x1b1a_1918, 0x1d1c, 0x1f1e));
        assert_eq!((header.flags, header.buf_alloc, header.fwd_cnt), (0x2322_2120, 0x2726_2524, 0x2b2a_2928));
        assert_eq!(header.to_bytes(), bytes);
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_header(bytes in prop::array::uniform32(0u8..), more in prop::array::uniform12(0u8..)) {
            let mut all = [0; HEADER_SIZE];
            all[..32].copy_from_slice(&bytes);
            all[32..].copy_from_slice(&more);
            prop_assert_eq!(Header::from_bytes(&all).to_bytes(), all);
        }
    }
}
