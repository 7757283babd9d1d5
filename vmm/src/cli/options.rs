//! The values of options: sizes, and lists of `key=value`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use innkeeper_protocol::{DiskEngine, Identity};
use uuid::Uuid;

use crate::firmware::smbios;
use crate::virtio::block::SerialNumber;
use crate::virtio::net::MacAddress;

/// A number of bytes: `256M`, `5G`, `1048576`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (digits, shift) = match text.as_bytes().last() {
            Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
            Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
            Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
            Some(b'T' | b't') => (&text[..text.len() - 1], 40),
            _ => (text, 0),
        };
        let is_number = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
        let size = digits
            .parse::<u64>()
            .ok()
            .filter(|_| is_number)
            .and_then(|number| number.checked_mul(1 << shift));
        size.map(Self).ok_or_else(|| "a size is a number of bytes, or of K, M, G or T: 256M".into())
    }
}

/// `key=value,key=value`, each key at most once.
struct Keys(BTreeMap<String, String>);

impl Keys {
    fn parse(text: &str) -> Result<Self, String> {
        let mut keys = BTreeMap::new();
        for pair in text.split(',') {
            let (key, value) = pair.split_once('=').ok_or_else(|| format!("{pair:?} is not KEY=VALUE"))?;
            if keys.insert(key.to_owned(), value.to_owned()).is_some() {
                return Err(format!("{key} is there twice"));
            }
        }
        Ok(Self(keys))
    }

    fn take(&mut self, key: &str) -> Option<String> {
        self.0.remove(key)
    }

    fn take_required(&mut self, key: &str) -> Result<String, String> {
        self.take(key).filter(|value| !value.is_empty()).ok_or_else(|| format!("{key}=… is missing"))
    }

    fn take_parsed<T: FromStr<Err: std::fmt::Display>>(&mut self, key: &str) -> Result<Option<T>, String> {
        self.take(key)
            .map(|value| value.parse().map_err(|error| format!("{key}={value}: {error}")))
            .transpose()
    }

    fn take_switch(&mut self, key: &str) -> Result<bool, String> {
        match self.take(key).as_deref() {
            None | Some("off") => Ok(false),
            Some("on") => Ok(true),
            Some(other) => Err(format!("{key}={other}: it is on or off")),
        }
    }

    fn finish(self) -> Result<(), String> {
        match self.0.into_keys().next() {
            Some(key) => Err(format!("there is no key {key:?} here")),
            None => Ok(()),
        }
    }
}

/// What a disk is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskFiles {
    Raw(PathBuf),
    /// Data and map of each layer, from the bottom.
    Layered(Vec<[PathBuf; 2]>),
}

/// `path=F,format=raw` or `path=D:M[:D:M…],format=layered`, and `[,readonly=on][,serial=S][,engine=E][,queues=N]`
#[derive(Clone, Debug)]
pub struct DiskOption {
    pub files: DiskFiles,
    pub is_read_only: bool,
    pub serial: String,
    pub engine: DiskEngine,
    pub queues: Option<u16>,
}

impl FromStr for DiskOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut keys = Keys::parse(text)?;
        let path = keys.take_required("path")?;
        let files = match keys.take_required("format")?.as_str() {
            "raw" => DiskFiles::Raw(path.into()),
            "layered" => DiskFiles::Layered(layers(&path)?),
            other => {
                return Err(format!(
                    "format={other}: it is raw or layered (qemu-img convert makes a raw one of others)"
                ));
            }
        };
        let is_read_only = keys.take_switch("readonly")?;
        let serial = keys.take("serial").unwrap_or_default();
        serial.parse::<SerialNumber>().map_err(|error| format!("serial={serial}: {error}"))?;
        let engine = match keys.take("engine").as_deref() {
            None | Some("auto") => DiskEngine::Auto,
            Some("io_uring") => DiskEngine::IoUring,
            Some("sync") => DiskEngine::Sync,
            Some(other) => return Err(format!("engine={other}: it is auto, io_uring or sync")),
        };
        let queues = keys.take_parsed("queues")?;
        keys.finish()?;
        Ok(Self { files, is_read_only, serial, engine, queues })
    }
}

/// The files of layers in `D:M[:D:M…]`.
fn layers(text: &str) -> Result<Vec<[PathBuf; 2]>, String> {
    let names: Vec<&str> = text.split(':').collect();
    let (layers, rest) = names.as_chunks::<2>();
    if !rest.is_empty() || names.iter().any(|name| name.is_empty()) {
        return Err(format!(
            "path={text}: it is DATA:MAP of each layer, from the bottom, and colons between them"
        ));
    }
    Ok(layers.iter().map(|layer| layer.map(PathBuf::from)).collect())
}

/// `NAME[,mac=M][,queues=N][,vhost=on]`
#[derive(Clone, Debug)]
pub struct TapOption {
    pub name: String,
    pub mac: Option<MacAddress>,
    pub queues: u16,
    pub vhost: bool,
}

impl FromStr for TapOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((name, keys)) = text.split_once(',') else {
            return Ok(Self { name: text.into(), mac: None, queues: 1, vhost: false });
        };
        let mut keys = Keys::parse(keys)?;
        let mac = keys.take_parsed("mac")?;
        let queues = keys.take_parsed("queues")?.unwrap_or(1);
        if !(1..=8).contains(&queues) {
            return Err(format!("queues={queues}: an interface has 1 to 8 pairs of queues"));
        }
        let vhost = keys.take_switch("vhost")?;
        keys.finish()?;
        Ok(Self { name: name.into(), mac, queues, vhost })
    }
}

/// `stdio`, `file=F` or `none`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsoleOption {
    Stdio,
    File(PathBuf),
    None,
}

impl FromStr for ConsoleOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("file=")) {
            ("stdio", _) => Ok(Self::Stdio),
            ("none", _) => Ok(Self::None),
            (_, Some(path)) if !path.is_empty() => Ok(Self::File(path.into())),
            _ => Err("it is stdio, file=FILE or none".into()),
        }
    }
}

/// `uuid=U[,serial=S][,asset-tag=T]`
#[derive(Clone, Debug)]
pub struct SmbiosOption(pub Identity);

impl FromStr for SmbiosOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut keys = Keys::parse(text)?;
        let uuid = keys.take_parsed::<Uuid>("uuid")?.ok_or("uuid=… is missing")?;
        let (serial, asset_tag) = (keys.take("serial"), keys.take("asset-tag"));
        keys.finish()?;
        smbios::Identity::new(uuid, serial.clone(), asset_tag.clone()).map_err(|error| error.to_string())?;
        Ok(Self(Identity { uuid: uuid.to_string(), serial, asset_tag }))
    }
}

/// `cid=N[,path=SOCKET]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VsockOption {
    pub cid: u32,
    pub path: Option<PathBuf>,
}

impl FromStr for VsockOption {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut keys = Keys::parse(text)?;
        let cid = keys.take_parsed("cid")?.ok_or("cid=… is missing")?;
        let path = keys.take("path").map(PathBuf::from);
        keys.finish()?;
        Ok(Self { cid, path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let cases = [("4096", 4096), ("1K", 1024), ("256M", 256 << 20), ("5g", 5 << 30), ("0", 0)];
        for (text, size) in cases {
            assert_eq!(text.parse(), Ok(Size(size)), "{text}");
        }
        for bad in
            ["", "M", "-1", "+1", "1.5G", "1 G", "99999999999999999999", "18446744073709551615K", "1MB", "é"]
        {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }

    #[test]
    fn disks() {
        let disk: DiskOption = "path=/a b,format=raw,readonly=on,serial=vol1".parse().unwrap();
        assert_eq!((disk.files, disk.is_read_only), (DiskFiles::Raw("/a b".into()), true));
        let disk: DiskOption = "path=/a:/b:c:d,format=layered".parse().unwrap();
        let layers = [["/a", "/b"], ["c", "d"]].map(|layer| layer.map(PathBuf::from));
        assert_eq!(disk.files, DiskFiles::Layered(layers.to_vec()));
        for bad in [
            "",
            "path=/a",
            "format=raw",
            "path=,format=raw",
            "path=/a,format=qcow2",
            "path=/a,format=raw,readonly=yes",
            "path=/a,format=raw,path=/b",
            "path=/a,format=raw,color=red",
            "path=/a,format=raw,engine=aio",
            "path=/a,format=raw,serial=123456789012345678901",
            "path=/a,format=layered",
            "path=/a:,format=layered",
            "path=/a:/b:/c,format=layered",
        ] {
            assert!(bad.parse::<DiskOption>().is_err(), "{bad}");
        }
    }

    #[test]
    fn vsock_devices() {
        assert_eq!("cid=3".parse(), Ok(VsockOption { cid: 3, path: None }));
        assert_eq!("cid=7,path=/x".parse(), Ok(VsockOption { cid: 7, path: Some("/x".into()) }));
        for bad in ["", "path=/x", "cid=", "cid=-1", "cid=3,port=4"] {
            assert!(bad.parse::<VsockOption>().is_err(), "{bad}");
        }
    }

    #[test]
    fn taps_and_serials_and_identities() {
        assert!("tap0".parse::<TapOption>().unwrap().mac.is_none());
        assert!("tap0,mac=02:00:00:00:00:01".parse::<TapOption>().unwrap().mac.is_some());
        let tap: TapOption = "tap0,queues=4,vhost=on".parse().unwrap();
        assert_eq!((tap.queues, tap.vhost), (4, true));
        for bad in ["tap0,mac=zz", "tap0,queues=0", "tap0,queues=9", "tap0,vhost=maybe"] {
            assert!(bad.parse::<TapOption>().is_err(), "{bad}");
        }
        assert_eq!("file=/x".parse(), Ok(ConsoleOption::File("/x".into())));
        assert!("file=".parse::<ConsoleOption>().is_err());
        assert!("uuid=ec200000-0000-0000-0000-000000000001,asset-tag=i-1".parse::<SmbiosOption>().is_ok());
        assert!("serial=1".parse::<SmbiosOption>().is_err());
    }
}
