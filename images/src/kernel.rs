//! Finds the ELF kernel (`vmlinux`) inside a bzImage (`vmlinuz`).
//!
//! Layout after the Linux x86 boot protocol (Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header"): the
//! setup header says where, counted from the protected-mode code, the compressed *payload* lies. Its last four
//! bytes are the size of what it decompresses to. The image may come out of a guest's own disk, so nothing in it is
//! believed.

mod xz;

use std::io::Read;

/// The largest kernel that is accepted, in bytes: 512 MiB. Distribution kernels are 30 to 80 MiB.
pub const MAX_VMLINUX: usize = 512 << 20;

/// Why there is no kernel to be had from an image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no setup header: another kind of file.
    #[error("not a Linux bzImage (no boot header)")]
    NotBzImage,
    /// An ELF file, which may well be the kernel that was looked for.
    #[error("already an ELF file, with nothing to extract")]
    AlreadyElf,
    /// Older than Linux 2.6.26, which does not say where the payload is.
    #[error("boot protocol {}.{:02} is too old (2.08 or later is needed)", .0 >> 8, .0 & 0xff)]
    OldProtocol(u16),
    /// The header's offsets lead outside the file.
    #[error("the file is too short for the payload that its header describes: cut off, or corrupt")]
    Truncated,
    /// A compression that Linux has and this module does not.
    #[error("the payload's compression is not supported ({0}; gzip, xz, lz4 and zstd are)")]
    UnsupportedCompression(&'static str),
    /// Neither ELF nor compressed as kernels are.
    #[error("the payload is neither an ELF file nor compressed, it begins with {0:02x?}: corrupt")]
    UnknownPayload(Vec<u8>),
    /// Larger than [`MAX_VMLINUX`].
    #[error("the kernel inside says it is {size} bytes large, more than the {limit} that are accepted")]
    TooLarge {
        /// What the image claims, in bytes.
        size: usize,
        /// What is accepted, in bytes.
        limit: usize,
    },
    /// The decompressor refused.
    #[error("the {format} payload does not decompress")]
    Decompress {
        /// The compression's name.
        format: &'static str,
        /// The decompressor's reason.
        source: std::io::Error,
    },
    /// It decompressed to another size than the image says.
    #[error("the payload decompresses to {actual} bytes where the image says {declared}: corrupt")]
    WrongSize {
        /// The size in the payload's last four bytes.
        declared: usize,
        /// The size it has; one more than `declared` when it is any larger.
        actual: usize,
    },
    /// A dictionary that is too large for whoever asked.
    #[error("decompressing it takes {needed} bytes of memory, more than the {limit} that are given")]
    Memory {
        /// What it takes, in bytes.
        needed: usize,
        /// What there is, in bytes.
        limit: usize,
    },
    /// What came out is no kernel for this architecture.
    #[error("the payload is not a 64-bit x86 ELF kernel")]
    NotElf,
}

const ELF_MAGIC: &[u8] = b"\x7fELF";
const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
const XZ_MAGIC: &[u8] = b"\xfd7zXZ\0";
const LZ4_LEGACY_MAGIC: &[u8] = &[0x02, 0x21, 0x4c, 0x18];
const ZSTD_MAGIC: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// Returns the ELF kernel inside `image`, the contents of a bzImage.
///
/// What follows the ELF file's own contents (the relocation table, when the kernel has one) is kept.
///
/// # Errors
/// Any [`Error`]: the image is not a bzImage, is corrupt, or its kernel is larger than [`MAX_VMLINUX`].
pub fn extract_vmlinux(image: &[u8]) -> Result<Vec<u8>, Error> {
    let packed = Packed::in_image(image)?;
    let mut vmlinux = vec![0; packed.size()];
    packed.unpack(&mut vmlinux, MAX_VMLINUX)?;
    Ok(vmlinux)
}

/// The compressed kernel inside a bzImage.
#[derive(Debug)]
pub struct Packed<'a> {
    payload: &'a [u8],
    format: Format,
    size: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Elf,
    Gzip,
    Lz4,
    Xz,
    Zstd,
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Self::Elf => "uncompressed",
            Self::Gzip => "gzip",
            Self::Lz4 => "lz4",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
        }
    }
}

impl<'a> Packed<'a> {
    /// Finds it in the contents of a bzImage.
    ///
    /// # Errors
    /// Those that can be told without decompressing anything.
    pub fn in_image(image: &'a [u8]) -> Result<Self, Error> {
        let payload = payload(image)?;
        let formats = [
            (ELF_MAGIC, Format::Elf),
            (GZIP_MAGIC, Format::Gzip),
            (LZ4_LEGACY_MAGIC, Format::Lz4),
            (XZ_MAGIC, Format::Xz),
            (ZSTD_MAGIC, Format::Zstd),
        ];
        let Some((_, format)) = formats.into_iter().find(|(magic, _)| payload.starts_with(magic)) else {
            return Err(unsupported(payload));
        };
        if format == Format::Elf {
            return Ok(Self { payload, format, size: payload.len() });
        }
        // For gzip the size is the end of the format itself; with the others it follows the stream.
        let (stream, size) = payload.split_last_chunk::<4>().ok_or(Error::Truncated)?;
        let size = u32::from_le_bytes(*size) as usize;
        if size > MAX_VMLINUX {
            return Err(Error::TooLarge { size, limit: MAX_VMLINUX });
        }
        Ok(Self { payload: if format == Format::Gzip { payload } else { stream }, format, size })
    }

    /// How large the kernel says it is, in bytes; at most [`MAX_VMLINUX`], unless it is not compressed.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Whether decompressing may take many seconds: xz takes one for some 10 MiB of what is compressed, whatever it
    /// becomes. Kernels have 8 MiB of it.
    pub fn is_slow(&self) -> bool {
        self.format == Format::Xz && self.payload.len() > 16 << 20
    }

    /// Decompresses the kernel into `output`, which has to be [`Self::size`] bytes long. Beside it takes little more
    /// than `memory` bytes.
    ///
    /// # Errors
    /// It is corrupt, is no kernel, or needs more memory than that.
    pub fn unpack(&self, output: &mut [u8], memory: usize) -> Result<(), Error> {
        let wrong = |actual| Error::WrongSize { declared: self.size, actual };
        if output.len() != self.size {
            return Err(wrong(output.len()));
        }
        let decompress = |source| Error::Decompress { format: self.format.name(), source };
        match self.format {
            Format::Elf => output.copy_from_slice(self.payload),
            Format::Gzip => {
                let length = fill(flate2::read::GzDecoder::new(self.payload), output).map_err(decompress)?;
                if length != self.size {
                    return Err(wrong(length));
                }
            }
            Format::Xz => {
                let length = xz::unpack(self.payload, output, memory).map_err(|error| match error {
                    xz::Error::Memory(needed) => Error::Memory { needed, limit: memory },
                    xz::Error::Io(source) => decompress(source),
                })?;
                if length != self.size {
                    return Err(wrong(length));
                }
            }
            Format::Zstd => unpack_zstd(self.payload, output)?,
            Format::Lz4 => unpack_lz4_legacy(self.payload, output)?,
        }
        if is_elf_kernel(output) { Ok(()) } else { Err(Error::NotElf) }
    }
}

/// Whether a file begins as a 64-bit ELF file for x86 does.
pub fn is_elf_kernel(file: &[u8]) -> bool {
    // e_ident: class ELFCLASS64, data ELFDATA2LSB; e_machine EM_X86_64.
    file.starts_with(ELF_MAGIC) && file.get(4..6) == Some(&[2, 1]) && file.get(18..20) == Some(&[62, 0])
}

/// The compressed part of a bzImage, with the four bytes of size at its end.
fn payload(image: &[u8]) -> Result<&[u8], Error> {
    if image.starts_with(ELF_MAGIC) {
        return Err(Error::AlreadyElf);
    }
    if image.get(0x202..0x206) != Some(b"HdrS") {
        return Err(Error::NotBzImage);
    }
    let protocol = u16::from_le_bytes(field(image, 0x206)?);
    if protocol < 0x208 {
        return Err(Error::OldProtocol(protocol));
    }
    // Sectors of 512 bytes after the boot sector; zero means four, says the protocol.
    let setup_sectors = match field::<1>(image, 0x1f1)?[0] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let offset = u32::from_le_bytes(field(image, 0x248)?) as usize;
    let length = u32::from_le_bytes(field(image, 0x24c)?) as usize;
    let start = (setup_sectors + 1) * 512 + offset;
    image.get(start..start + length).ok_or(Error::Truncated)
}

fn field<const N: usize>(image: &[u8], offset: usize) -> Result<[u8; N], Error> {
    image.get(offset..).and_then(|rest| rest.first_chunk()).copied().ok_or(Error::Truncated)
}

/// Fills `output` with what `decoder` gives. Says how much that was; one more than there is room for if it is more.
fn fill(mut decoder: impl Read, output: &mut [u8]) -> std::io::Result<usize> {
    let mut length = 0;
    while let Some(rest) = output.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match decoder.read(rest)? {
            0 => return Ok(length),
            more => length += more,
        }
    }
    Ok(length + decoder.read(&mut [0])?)
}

/// One frame. It goes straight to where it shall be, so that the frame's window, which is up to 128 MiB in kernels,
/// needs no memory of its own.
fn unpack_zstd(stream: &[u8], output: &mut [u8]) -> Result<(), Error> {
    use zstd::zstd_safe;
    let decompress = |source| Error::Decompress { format: "zstd", source };
    let corrupt = |code| {
        decompress(std::io::Error::new(std::io::ErrorKind::InvalidData, zstd_safe::get_error_name(code)))
    };
    let declared = output.len();
    let frame = zstd_safe::find_frame_compressed_size(stream).map_err(corrupt)?;
    let frame = stream.get(..frame).ok_or(Error::Truncated)?;
    let mut context =
        zstd_safe::DCtx::try_create().ok_or_else(|| decompress(std::io::ErrorKind::OutOfMemory.into()))?;
    match context.decompress(output, frame) {
        Ok(length) if length == declared => Ok(()),
        Ok(length) => Err(Error::WrongSize { declared, actual: length }),
        Err(code) if zstd_safe::get_error_name(code) == TOO_SMALL => {
            Err(Error::WrongSize { declared, actual: declared + 1 })
        }
        Err(code) => Err(corrupt(code)),
    }
}

/// What zstd says when there is more than there is room for.
const TOO_SMALL: &str = "Destination buffer is too small";

/// The "legacy" frame of `lz4 -l`: the magic, then blocks of 8 MiB, each after its compressed size.
fn unpack_lz4_legacy(stream: &[u8], output: &mut [u8]) -> Result<(), Error> {
    const BLOCK: usize = 8 << 20;
    let invalid = |why: String| Error::Decompress {
        format: "lz4",
        source: std::io::Error::new(std::io::ErrorKind::InvalidData, why),
    };
    let declared = output.len();
    let mut written = 0;
    let mut rest = stream;
    while let Some((word, after)) = rest.split_first_chunk::<4>() {
        rest = after;
        // Concatenated frames are one.
        if word == LZ4_LEGACY_MAGIC {
            continue;
        }
        let length = u32::from_le_bytes(*word) as usize;
        let (compressed, after) = rest
            .split_at_checked(length)
            .ok_or_else(|| invalid(format!("a block of {length} bytes is cut off")))?;
        let room = output.get_mut(written..).unwrap_or_default();
        let is_last = room.len() <= BLOCK;
        let room_length = room.len().min(BLOCK);
        let room = room.get_mut(..room_length).unwrap_or_default();
        written += match lz4_flex::block::decompress_into(compressed, room) {
            Ok(length) => length,
            Err(lz4_flex::block::DecompressError::OutputTooSmall { .. }) if is_last => {
                return Err(Error::WrongSize { declared, actual: declared + 1 });
            }
            Err(error) => return Err(invalid(error.to_string())),
        };
        rest = after;
    }
    if written == declared { Ok(()) } else { Err(Error::WrongSize { declared, actual: written }) }
}

/// What to say of a payload that this module does not decompress.
fn unsupported(payload: &[u8]) -> Error {
    let known: [(&[u8], &str); 3] =
        [(b"BZh", "bzip2"), (&[0x5d, 0, 0], "lzma"), (&[0x89, b'L', b'Z', b'O'], "lzo")];
    match known.iter().find(|(magic, _)| payload.starts_with(magic)) {
        Some((_, name)) => Error::UnsupportedCompression(name),
        None => Error::UnknownPayload(payload.iter().copied().take(4).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// A bzImage with one setup sector and this payload.
    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend_from_slice(payload);
        image
    }

    fn kernel(size: usize) -> Vec<u8> {
        let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
        elf.resize(size, 0x90);
        elf[18..20].copy_from_slice(&[62, 0]);
        elf
    }

    fn with_size(mut stream: Vec<u8>, size: usize) -> Vec<u8> {
        stream.extend_from_slice(&(size as u32).to_le_bytes());
        stream
    }

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn lz4_legacy(data: &[u8]) -> Vec<u8> {
        let mut stream = LZ4_LEGACY_MAGIC.to_vec();
        for block in data.chunks(8 << 20) {
            let compressed = lz4_flex::block::compress(block);
            stream.extend_from_slice(&(compressed.len() as u32).to_le_bytes());
            stream.extend_from_slice(&compressed);
        }
        stream
    }

    fn zstd(data: &[u8]) -> Vec<u8> {
        zstd::encode_all(data, 1).unwrap()
    }

    #[test]
    fn finds_the_kernel_in_every_compression() {
        // Larger than one block of lz4.
        let kernel = kernel(9 << 20);
        let payloads = [
            ("none", kernel.clone()),
            ("gzip", gzip(&kernel)),
            ("lz4", with_size(lz4_legacy(&kernel), kernel.len())),
            ("zstd", with_size(zstd(&kernel), kernel.len())),
        ];
        for (name, payload) in payloads {
            assert!(extract_vmlinux(&bzimage(&payload)).unwrap() == kernel, "{name}");
        }
    }

    #[test]
    fn xz_with_the_branch_filter_of_kernels() {
        // The kernel of the other tests, after `xz --check=crc32 --x86 --lzma2` as in the kernel's xz_wrap.sh.
        let payload = include_bytes!("../tests/kernel-payload.xz");
        let vmlinux = extract_vmlinux(&bzimage(payload)).unwrap();
        assert_eq!(vmlinux, kernel(4096));
    }

    #[test]
    fn refuses_other_files() {
        assert!(matches!(extract_vmlinux(b""), Err(Error::NotBzImage)));
        assert!(matches!(extract_vmlinux(&[0; 4096]), Err(Error::NotBzImage)));
        assert!(matches!(extract_vmlinux(&kernel(4096)), Err(Error::AlreadyElf)));
        let mut old = bzimage(b"");
        old[0x206..0x208].copy_from_slice(&0x207_u16.to_le_bytes());
        assert_eq!(
            extract_vmlinux(&old).unwrap_err().to_string(),
            "boot protocol 2.07 is too old (2.08 or later is needed)"
        );
    }

    #[test]
    fn refuses_offsets_outside_the_file() {
        let good = bzimage(&gzip(&kernel(4096)));
        for (offset, length) in [(u32::MAX, u32::MAX), (0, u32::MAX), (u32::MAX, 0), (0, good.len() as u32)] {
            let mut image = good.clone();
            image[0x248..0x24c].copy_from_slice(&offset.to_le_bytes());
            image[0x24c..0x250].copy_from_slice(&length.to_le_bytes());
            assert!(matches!(extract_vmlinux(&image), Err(Error::Truncated)), "{offset} {length}");
        }
        // A header that ends in the middle.
        assert!(matches!(extract_vmlinux(&good[..0x24e]), Err(Error::Truncated)));
        assert!(matches!(extract_vmlinux(&bzimage(&GZIP_MAGIC[..2])), Err(Error::Truncated)));
    }

    #[test]
    fn refuses_bombs() {
        let big = vec![0; 1 << 20];
        for payload in [with_size(zstd(&big), 4096), with_size(lz4_legacy(&big), 4096), {
            let mut gzip = gzip(&big);
            let end = gzip.len() - 4;
            gzip[end..].copy_from_slice(&4096_u32.to_le_bytes());
            gzip
        }] {
            assert!(matches!(
                extract_vmlinux(&bzimage(&payload)),
                Err(Error::WrongSize { declared: 4096, actual: 4097 })
            ));
        }
        let huge = with_size(zstd(&big), MAX_VMLINUX + 1);
        assert!(matches!(extract_vmlinux(&bzimage(&huge)), Err(Error::TooLarge { .. })));
    }

    #[test]
    fn refuses_corrupt_payloads() {
        let kernel = kernel(1 << 16);
        for whole in [
            gzip(&kernel),
            with_size(zstd(&kernel), kernel.len()),
            with_size(lz4_legacy(&kernel), kernel.len()),
        ] {
            for cut in [8, whole.len() / 2, whole.len() - 5] {
                assert!(extract_vmlinux(&bzimage(&whole[..cut])).is_err());
            }
        }
        let text = b"not a kernel at all".repeat(10);
        assert!(matches!(extract_vmlinux(&bzimage(&gzip(&text))), Err(Error::NotElf)));
        assert_eq!(
            extract_vmlinux(&bzimage(b"BZh91AY")).unwrap_err().to_string(),
            "the payload's compression is not supported (bzip2; gzip, xz, lz4 and zstd are)"
        );
        assert_eq!(
            extract_vmlinux(&bzimage(b"\0\x01\x02\x03\x04")).unwrap_err().to_string(),
            "the payload is neither an ELF file nor compressed, it begins with [00, 01, 02, 03]: corrupt"
        );
    }
}
