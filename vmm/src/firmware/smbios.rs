//! SMBIOS 3.5 tables (DMTF DSP0134): who made this machine and which one it is.
//!
//! The strings are EC2's: cloud-init takes a machine for an EC2 instance by its UUID and serial number, and
//! systemd by the BIOS vendor.

use uuid::Uuid;

/// What tells one machine from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The system's UUID (type 1).
    pub uuid: Uuid,
    /// The system's serial number (type 1). EC2 repeats the UUID here.
    pub serial: String,
    /// The asset tag of board and chassis (types 2 and 3). EC2 puts the instance id here.
    pub asset_tag: String,
}

/// Why a string cannot be an SMBIOS string.
#[derive(Debug, thiserror::Error)]
#[error("an SMBIOS string is at most 64 printable ASCII characters")]
pub struct InvalidString;

/// The longest string that tools are sure to show whole.
const MAX_STRING: usize = 64;

impl Identity {
    /// Checks the strings, and takes the UUID as the serial number if none is given.
    pub fn new(uuid: Uuid, serial: Option<String>, asset_tag: Option<String>) -> Result<Self, InvalidString> {
        let serial = serial.unwrap_or_else(|| uuid.to_string());
        let asset_tag = asset_tag.unwrap_or_default();
        for string in [&serial, &asset_tag] {
            if string.len() > MAX_STRING || !string.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
                return Err(InvalidString);
            }
        }
        Ok(Self { uuid, serial, asset_tag })
    }
}

const VENDOR: &str = "Amazon EC2";
const PRODUCT: &str = "Innkeeper";
const ENTRY_POINT_SIZE: u8 = 24;

/// The entry point, at `base`, followed by the structures.
pub fn tables(identity: &Identity, base: u64) -> Vec<u8> {
    let structures = structures(identity);
    let structures_start = (u64::from(ENTRY_POINT_SIZE)).next_multiple_of(16);
    let mut bytes = entry_point(base + structures_start, structures.len() as u32);
    bytes.resize(structures_start as usize, 0);
    bytes.extend(structures);
    bytes
}

/// The 64-bit entry point (section 5.2.2).
fn entry_point(structures: u64, size: u32) -> Vec<u8> {
    const CHECKSUM: usize = 5;
    let mut bytes = Vec::with_capacity(usize::from(ENTRY_POINT_SIZE));
    bytes.extend(b"_SM3_");
    bytes.push(0); // checksum
    bytes.push(ENTRY_POINT_SIZE);
    bytes.extend([3, 5, 0]); // version and revision of the specification
    bytes.push(1); // entry point revision
    bytes.push(0); // reserved
    bytes.extend(size.to_le_bytes());
    bytes.extend(structures.to_le_bytes());
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    bytes[CHECKSUM] = sum.wrapping_neg();
    bytes
}

fn structures(identity: &Identity) -> Vec<u8> {
    const SYSTEM: u16 = 1;
    const BOARD: u16 = 2;
    const CHASSIS: u16 = 3;
    [
        bios(0),
        system(SYSTEM, identity),
        board(BOARD, CHASSIS, identity),
        chassis(CHASSIS, identity),
        Structure::new(32, 4).bytes(&[0; 6]).byte(0).finish(), // system boot: no error
        Structure::new(127, 5).finish(),                       // end of table
    ]
    .concat()
}

/// Type 0 (section 7.1).
fn bios(handle: u16) -> Vec<u8> {
    const CHARACTERISTICS_NOT_SUPPORTED: u64 = 1 << 3;
    const EXTENSION_ACPI: u8 = 1;
    const EXTENSION_VIRTUAL_MACHINE: u8 = 1 << 4;
    Structure::new(0, handle)
        .string(VENDOR)
        .string("1.0")
        .bytes(&0u16.to_le_bytes()) // no start segment
        .string("10/16/2017")
        .byte(0) // ROM size
        .bytes(&CHARACTERISTICS_NOT_SUPPORTED.to_le_bytes())
        .bytes(&[EXTENSION_ACPI, EXTENSION_VIRTUAL_MACHINE])
        .bytes(&[1, 0]) // BIOS release
        .bytes(&[0xff, 0xff]) // no embedded controller
        .bytes(&0u16.to_le_bytes()) // extended ROM size
        .finish()
}

/// Type 1 (section 7.2).
fn system(handle: u16, identity: &Identity) -> Vec<u8> {
    const WAKE_UP_POWER_SWITCH: u8 = 6;
    Structure::new(1, handle)
        .string(VENDOR)
        .string(PRODUCT)
        .string("")
        .string(&identity.serial)
        // The first three fields of the UUID are little-endian (section 7.2.1).
        .bytes(&identity.uuid.to_bytes_le())
        .byte(WAKE_UP_POWER_SWITCH)
        .string("")
        .string("")
        .finish()
}

/// Type 2 (section 7.3).
fn board(handle: u16, chassis: u16, identity: &Identity) -> Vec<u8> {
    const FEATURE_HOSTING: u8 = 1;
    const TYPE_MOTHERBOARD: u8 = 0x0a;
    Structure::new(2, handle)
        .string(VENDOR)
        .string("")
        .string("")
        .string("")
        .string(&identity.asset_tag)
        .byte(FEATURE_HOSTING)
        .string("")
        .bytes(&chassis.to_le_bytes())
        .byte(TYPE_MOTHERBOARD)
        .byte(0) // contained objects
        .finish()
}

/// Type 3 (section 7.4).
fn chassis(handle: u16, identity: &Identity) -> Vec<u8> {
    const TYPE_OTHER: u8 = 1;
    const STATE_SAFE: u8 = 3;
    const SECURITY_NONE: u8 = 3;
    Structure::new(3, handle)
        .string(VENDOR)
        .byte(TYPE_OTHER)
        .string("")
        .string("")
        .string(&identity.asset_tag)
        .bytes(&[STATE_SAFE, STATE_SAFE, STATE_SAFE, SECURITY_NONE])
        .bytes(&0u32.to_le_bytes()) // OEM-defined
        .bytes(&[0, 1, 0, 0]) // height, power cords, contained elements
        .string("")
        .finish()
}

/// One structure: a formatted area and the strings that it refers to by number (section 6.1).
struct Structure {
    formatted: Vec<u8>,
    strings: Vec<u8>,
    count: u8,
}

impl Structure {
    fn new(kind: u8, handle: u16) -> Self {
        let [low, high] = handle.to_le_bytes();
        Self { formatted: vec![kind, 0, low, high], strings: Vec::new(), count: 0 }
    }

    fn byte(self, value: u8) -> Self {
        self.bytes(&[value])
    }

    fn bytes(mut self, values: &[u8]) -> Self {
        self.formatted.extend(values);
        self
    }

    /// A reference to a string; 0 stands for none.
    fn string(mut self, value: &str) -> Self {
        if value.is_empty() {
            return self.byte(0);
        }
        self.count += 1;
        self.strings.extend(value.as_bytes());
        self.strings.push(0);
        let number = self.count;
        self.byte(number)
    }

    fn finish(mut self) -> Vec<u8> {
        const LENGTH: usize = 1;
        self.formatted[LENGTH] = self.formatted.len() as u8;
        if self.strings.is_empty() {
            self.strings.push(0);
        }
        self.strings.push(0);
        [self.formatted, self.strings].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smbioslib::{
        SMBiosBaseboardInformation, SMBiosData, SMBiosEntryPoint64, SMBiosInformation,
        SMBiosSystemChassisInformation, SMBiosSystemInformation, SMBiosVersion, SystemUuidData,
    };

    fn identity() -> Identity {
        let uuid = Uuid::parse_str("ec2a1b2c-3d4e-5f60-7182-93a4b5c6d7e8").unwrap();
        Identity::new(uuid, None, Some("i-0123456789abcdef0".into())).unwrap()
    }

    /// An independent parser finds what we put in.
    #[test]
    fn another_parser_reads_the_tables() {
        let bytes = tables(&identity(), 0xf_0000);
        let sum = bytes[..24].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(sum, 0);
        assert_eq!(&bytes[..5], SMBiosEntryPoint64::SM3_ANCHOR);
        assert_eq!(u64::from_le_bytes(bytes[16..24].try_into().unwrap()), 0xf_0020);
        assert_eq!(u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize, bytes.len() - 0x20);

        let data = SMBiosData::from_vec_and_version(
            bytes[0x20..].to_vec(),
            Some(SMBiosVersion { major: 3, minor: 5, revision: 0 }),
        );
        let bios: SMBiosInformation = data.first().unwrap();
        assert_eq!(bios.vendor().to_string(), "Amazon EC2");
        let system: SMBiosSystemInformation = data.first().unwrap();
        assert_eq!(system.manufacturer().to_string(), "Amazon EC2");
        assert_eq!(system.serial_number().to_string(), "ec2a1b2c-3d4e-5f60-7182-93a4b5c6d7e8");
        let Some(SystemUuidData::Uuid(uuid)) = system.uuid() else { panic!("no UUID") };
        assert_eq!(uuid.to_string().to_lowercase(), "ec2a1b2c-3d4e-5f60-7182-93a4b5c6d7e8");
        let board: SMBiosBaseboardInformation = data.first().unwrap();
        assert_eq!(board.asset_tag().to_string(), "i-0123456789abcdef0");
        let chassis: SMBiosSystemChassisInformation = data.first().unwrap();
        assert_eq!(chassis.asset_tag_number().to_string(), "i-0123456789abcdef0");
    }

    #[test]
    fn strings_that_would_break_the_table_are_refused() {
        for bad in ["a\0b", "a\nb", "\u{e4}", &"x".repeat(65)] {
            assert!(Identity::new(Uuid::nil(), Some(bad.into()), None).is_err(), "{bad:?}");
        }
    }
}
