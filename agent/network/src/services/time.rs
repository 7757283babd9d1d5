//! The time, by SNTP (RFC 4330): what the host's clock says.

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::socket::{Datagram, Socket};
use crate::routes::services::TIME;

/// Where servers listen.
pub const PORT: u16 = 123;

/// Seconds from 1900 to 1970.
const ERA: u64 = 2_208_988_800;

/// How far from a reference clock we say that we are: the host's own clock is set by somebody who is set by one.
const STRATUM: u8 = 4;

/// Serves for ever.
pub(super) async fn serve(socket: Socket) -> io::Result<()> {
    loop {
        let Datagram { bytes, peer, interface, to } = socket.receive().await?;
        if to != TIME {
            continue;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        if let Some(answer) = answer(&bytes, now) {
            socket.send(&answer, peer, interface, to);
        }
    }
}

/// Answers a client; `now` is since 1970. None, if it is none.
pub fn answer(request: &[u8], now: Duration) -> Option<[u8; 48]> {
    let request: &[u8; 48] = request.get(..48)?.try_into().ok()?;
    let [first, _, poll, ..] = *request;
    let (version, mode) = (first >> 3 & 7, first & 7);
    const CLIENT: u8 = 3;
    const SERVER: u8 = 4;
    if mode != CLIENT || !(1..=4).contains(&version) {
        return None;
    }
    let now = timestamp(now);
    let mut answer = [0; 48];
    let (header, times) = answer.split_at_mut(16);
    // The precision is a microsecond, 2⁻²⁰ s; the delay to the reference is none.
    header.copy_from_slice(&[
        version << 3 | SERVER,
        STRATUM,
        poll,
        0xec,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        b'L',
        b'O',
        b'C',
        b'L',
    ]);
    // Reference, originate, receive and transmit time. What the client calls its own is given back to it.
    let sent = request.get(40..48)?;
    for (place, time) in times.chunks_mut(8).zip([&now[..], sent, &now, &now]) {
        place.copy_from_slice(time);
    }
    Some(answer)
}

/// Seconds since 1900 and their fraction, 32 bits each. In 2036 they begin anew, as everybody's do.
fn timestamp(since_1970: Duration) -> [u8; 8] {
    let seconds = since_1970.as_secs().wrapping_add(ERA) & 0xffff_ffff;
    let fraction = (u64::from(since_1970.subsec_nanos()) << 32) / 1_000_000_000;
    (seconds << 32 | fraction).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_told_the_time() {
        let mut request = [0; 48];
        request[0] = 0x23;
        request[40..48].copy_from_slice(b"12345678");
        let now = Duration::new(1_000_000_000, 500_000_000);
        let answer = answer(&request, now).unwrap();
        assert_eq!((answer[0], answer[1]), (0x24, STRATUM));
        assert_eq!(&answer[24..32], b"12345678");
        let transmitted = u64::from_be_bytes(answer[40..48].try_into().unwrap());
        assert_eq!(transmitted >> 32, 1_000_000_000 + ERA);
        assert_eq!(transmitted & 0xffff_ffff, 1 << 31);
    }

    #[test]
    fn others_are_not_answered() {
        for first in [0x24, 0x1c, 0x03, 0x2b, 0] {
            let mut request = [0; 48];
            request[0] = first;
            assert_eq!(answer(&request, Duration::ZERO), None, "{first:#x}");
        }
        assert_eq!(answer(&[0x23; 47], Duration::ZERO), None);
    }
}
