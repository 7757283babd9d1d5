//! The two CRCs that disks use, both with 32 bits and reflected.
//!
//! They are here, in a few lines, because ext4 carries the register from one piece to the next and leaves out the
//! inversion at the end, which the usual packages do not let one do.

const fn tables(polynomial: u32) -> [[u32; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut value = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { value >> 1 ^ polynomial } else { value >> 1 };
            bit += 1;
        }
        tables[0][byte] = value;
        byte += 1;
    }
    let mut table = 1;
    while table < 8 {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[table - 1][byte];
            tables[table][byte] = before >> 8 ^ tables[0][(before & 0xff) as usize];
            byte += 1;
        }
        table += 1;
    }
    tables
}

static IEEE: [[u32; 256]; 8] = tables(0xedb8_8320);
static CASTAGNOLI: [[u32; 256]; 8] = tables(0x82f6_3b78);

/// Eight bytes at a time, which is fast enough for a file system's own blocks.
fn update(tables: &[[u32; 256]; 8], register: u32, data: &[u8]) -> u32 {
    let (words, rest) = data.as_chunks::<8>();
    let mut register = register;
    for word in words {
        let word = u64::from_le_bytes(*word) ^ u64::from(register);
        register = word
            .to_le_bytes()
            .iter()
            .zip(tables.iter().rev())
            .fold(0, |sum, (byte, table)| sum ^ table[usize::from(*byte)]);
    }
    for byte in rest {
        register = register >> 8 ^ tables[0][usize::from(*byte ^ register as u8)];
    }
    register
}

/// CRC-32 as in GPT, gzip and xz.
pub fn crc32(data: &[u8]) -> u32 {
    !update(&IEEE, !0, data)
}

/// The register of CRC-32C after `data`, as ext4 and its journal use it: they begin with `!0` and do not invert.
pub fn crc32c(register: u32, data: &[u8]) -> u32 {
    update(&CASTAGNOLI, register, data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_values_of_the_catalogue() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
        // In two pieces it is the same.
        assert_eq!(crc32c(crc32c(!0, b"12345"), b"6789"), crc32c(!0, b"123456789"));
    }
}
