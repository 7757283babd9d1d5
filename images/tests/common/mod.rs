//! Makes disks, with the tools that everybody makes them with.

// Each test uses its part of this.
#![allow(dead_code)]

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::{NamedTempFile, TempDir};

/// The GUIDs of partition types.
pub const LINUX: &str = "0FC63DAF-8483-4772-8E79-3D69D8477DE4";
pub const XBOOTLDR: &str = "BC13C2FF-59E6-4262-A352-B275FD6F7172";
pub const ESP: &str = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B";

/// The `PARTUUID` of partitions in their order.
pub fn partition_uuid(number: usize) -> String {
    format!("00000000-0000-4000-8000-{number:012x}")
}

const MIB: usize = 1 << 20;

/// What shall be in a file system.
pub struct Tree(TempDir);

impl Tree {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn with(self, path: &str, contents: impl AsRef<[u8]>) -> Self {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
        self
    }

    pub fn with_link(self, path: &str, target: &str) -> Self {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
        self
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// An ext4 file system.
    pub fn ext4(&self, mib: usize) -> Vec<u8> {
        self.mke2fs(mib, &["-t", "ext4"])
    }

    /// A file system made with these options. It is the same every time.
    pub fn mke2fs(&self, mib: usize, options: &[&str]) -> Vec<u8> {
        let file = NamedTempFile::new().unwrap();
        file.as_file().set_len((mib * MIB) as u64).unwrap();
        let mut command = tool("mke2fs");
        command.args(["-q", "-F", "-U", "01234567-89ab-4cde-8f01-23456789abcd"]);
        command.args(["-E", "root_owner=0:0,hash_seed=76543210-89ab-4cde-8f01-23456789abcd"]);
        command.env("E2FSPROGS_FAKE_TIME", "1700000000");
        command.args(options).arg("-d").arg(self.path()).arg(file.path());
        run(&mut command, "");
        fs::read(file.path()).unwrap()
    }
}

pub fn tool(name: &str) -> Command {
    let mut command = Command::new(name);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}

/// Runs a tool with this input, and gives what it prints.
pub fn run(command: &mut Command, input: &str) -> String {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child =
        command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error} (scripts/setup installs it)"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A disk with a GPT and these partitions: type and contents.
pub fn gpt(partitions: &[(&str, &[u8])]) -> Vec<u8> {
    let mut script = "label: gpt\nlabel-id: 00000000-0000-4000-8000-0000000000ff\n".to_owned();
    let mut start = MIB;
    for (number, (kind, contents)) in (1..).zip(partitions) {
        let (sector, sectors) = (start / 512, contents.len() / 512);
        let uuid = partition_uuid(number);
        script += &format!("start={sector}, size={sectors}, type={kind}, uuid={uuid}\n");
        start += contents.len().next_multiple_of(MIB);
    }
    disk(start + MIB, &script, MIB, partitions)
}

/// A disk with an MBR: the first partitions are primary, those from number 5 on are in an extended one.
pub fn mbr(primary: &[&[u8]], logical: &[&[u8]]) -> Vec<u8> {
    let mut script = "label: dos\nlabel-id: 0x01234567\n".to_owned();
    let mut start = MIB;
    for contents in primary {
        script += &format!("start={}, size={}, type=83\n", start / 512, contents.len() / 512);
        start += contents.len().next_multiple_of(MIB);
    }
    let begin = start;
    for contents in logical {
        start += MIB + contents.len().next_multiple_of(MIB);
    }
    if !logical.is_empty() {
        script += &format!("start={}, size={}, type=5\n", begin / 512, (start - begin) / 512);
        let mut at = begin;
        for (number, contents) in (5..).zip(logical) {
            at += MIB;
            script += &format!("{number}: start={}, size={}, type=83\n", at / 512, contents.len() / 512);
            at += contents.len().next_multiple_of(MIB);
        }
    }
    let primary: Vec<_> = primary.iter().map(|contents| ("", *contents)).collect();
    let mut image = disk(start, &script, MIB, &primary);
    let mut at = begin;
    for contents in logical {
        at += MIB;
        image[at..][..contents.len()].copy_from_slice(contents);
        at += contents.len().next_multiple_of(MIB);
    }
    image
}

fn disk(size: usize, script: &str, first: usize, partitions: &[(&str, &[u8])]) -> Vec<u8> {
    let mut file = NamedTempFile::new().unwrap();
    file.as_file().set_len(size as u64).unwrap();
    run(tool("sfdisk").arg("--quiet").arg(file.path()), script);
    let mut start = first;
    for (_, contents) in partitions {
        file.seek(SeekFrom::Start(start as u64)).unwrap();
        file.write_all(contents).unwrap();
        start += contents.len().next_multiple_of(MIB);
    }
    let mut image = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut image).unwrap();
    image
}

/// What passes for an ELF kernel. `mark` tells it from others.
pub fn vmlinux(mark: &str) -> Vec<u8> {
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(64, 0);
    elf[18..20].copy_from_slice(&[62, 0]);
    elf.extend(mark.bytes());
    // Hard to compress, as code is, so that no byte of what is compressed can change unnoticed.
    let mut state = 1_u32;
    elf.resize_with(200_000, || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    });
    elf
}

/// A bzImage with this payload.
pub fn bzimage(payload: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 1024];
    image[0x1f1] = 1;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    image.extend_from_slice(payload);
    image
}

pub fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// A kernel as a distribution has it.
pub fn vmlinuz(mark: &str) -> Vec<u8> {
    bzimage(&gzip(&vmlinux(mark)))
}

/// A `grub.cfg` in Debian's shape, with an entry and a submenu for these versions. Paths begin with `directory`.
pub fn grub_cfg(default: &str, directory: &str, versions: &[&str]) -> String {
    let entry = |title: &str, id: &str, version: &str| {
        format!(
            "menuentry '{title}' --class debian $menuentry_id_option '{id}' {{\n\
             \tload_video\n\
             \tif [ x$grub_platform = xxen ]; then insmod xzio; fi\n\
             \tsearch --no-floppy --fs-uuid --set=root 01234567-89ab-4cde-8f01-23456789abcd\n\
             \tlinux\t{directory}/vmlinuz-{version} root=UUID=1a2b ro  quiet\n\
             \tinitrd\t{directory}/initrd.img-{version}\n\
             }}\n"
        )
    };
    let mut text = format!(
        "if [ -s $prefix/grubenv ]; then\n  set have_grubenv=true\n  load_env\nfi\n\
         set default=\"{default}\"\n\
         if [ x\"${{feature_menuentry_id}}\" = xy ]; then\n  menuentry_id_option=\"--id\"\nfi\n\
         export menuentry_id_option\n\
         function savedefault {{\n  save_env saved_entry\n}}\n"
    );
    text += &entry("Debian GNU/Linux", "simple", versions[0]);
    text += "submenu 'Advanced options' $menuentry_id_option 'advanced' {\n";
    for version in versions {
        text += &entry(
            &format!("Debian GNU/Linux, with Linux {version}"),
            &format!("advanced-{version}"),
            version,
        );
    }
    text + "}\n"
}

/// A block of GRUB's environment.
pub fn grubenv(variables: &str) -> String {
    format!("{:#<1024}", format!("# GRUB Environment Block\n{variables}"))
}
