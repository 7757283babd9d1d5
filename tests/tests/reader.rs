//! The guest that reads disks whose file system the host does not read: the `boot-reader` image, and disks made by the
//! tools that everybody makes them with. For root on a host with hardware KVM, or the lab: file systems are mounted, in a
//! mount namespace of their own, to fill them.

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use innkeeper_images::boot::reader::{self, ANSWER_DISK, MEMORY};
use innkeeper_images::boot::{self, BootSource, Place};
use innkeeper_tests::{Vmm, disk, image, path};
use tempfile::{NamedTempFile, TempDir};

const PATIENCE: Duration = Duration::from_secs(180);
const MIB: u64 = 1 << 20;

/// Types of partitions: Linux's data, `/boot` (XBOOTLDR), an EFI system partition.
const LINUX: &str = "0FC63DAF-8483-4772-8E79-3D69D8477DE4";
const XBOOTLDR: &str = "BC13C2FF-59E6-4262-A352-B275FD6F7172";
const ESP: &str = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B";

/// What passes for a kernel, and for an initial RAM file system, of a version.
fn kernel(version: &str) -> Vec<u8> {
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(64, 0);
    elf[18..20].copy_from_slice(&[62, 0]);
    elf.extend(format!("Linux {version}. ").repeat(20_000).bytes());
    elf
}

fn initrd(version: &str) -> Vec<u8> {
    format!("initrd of {version}. ").repeat(20_000).into_bytes()
}

/// What scripts that fill a file system can use. `kernels DIRECTORY VERSION…` puts kernels there, `entry FILE VERSION
/// DIRECTORY` an entry of the Boot Loader Specification, whose paths begin with the directory.
const PRELUDE: &str = r#"
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
modprobe --all loop xfs btrfs
kernels() {
    local directory=$1 version
    shift
    mkdir -p "$directory"
    for version; do
        cp "$FILES/kernel-$version" "$directory/vmlinuz-$version"
        cp "$FILES/initrd-$version" "$directory/initramfs-$version.img"
    done
}
entry() {
    mkdir -p "${1%/*}"
    printf 'title Linux %s\nversion %s\nlinux %s/vmlinuz-%s\ninitrd %s/initramfs-%s.img\noptions root=UUID=1a2b ro\n' \
        "$2" "$2" "$3" "$2" "$3" "$2" >"$1"
}
"#;

/// The files of the kernels that scripts use.
fn kernel_files() -> Result<TempDir> {
    let files = tempfile::tempdir()?;
    for version in ["6.1.0", "6.2.0"] {
        fs::write(files.path().join(format!("kernel-{version}")), kernel(version))?;
        fs::write(files.path().join(format!("initrd-{version}")), initrd(version))?;
    }
    Ok(files)
}

/// Makes a file system, and fills it by a script that runs in it, mounted. The script may leave a copy in `$COPY`, which
/// is taken then.
fn file_system(make: &str, options: &str, script: &str) -> Result<NamedTempFile> {
    let (file, copy, files) = (NamedTempFile::new()?, NamedTempFile::new()?, kernel_files()?);
    let mounted = tempfile::tempdir()?;
    file.as_file().set_len(400 * MIB)?;
    let script = format!(
        "{PRELUDE}{make} \"$FILE\"\nmount -o loop{options} \"$FILE\" \"$MOUNTED\"\ncd \"$MOUNTED\"\n{script}\n\
         cd /\numount \"$MOUNTED\""
    );
    let output = Command::new("unshare")
        .args(["--mount", "bash", "-c", &script])
        .env("FILE", file.path())
        .env("COPY", copy.path())
        .env("FILES", files.path())
        .env("MOUNTED", mounted.path())
        .output()
        .context("cannot run unshare")?;
    ensure!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(if copy.as_file().metadata()?.len() > 0 { copy } else { file })
}

const XFS: &str = "mkfs.xfs -q";
const BTRFS: &str = "mkfs.btrfs -q";

/// A disk with a GPT and these partitions: type and contents.
fn gpt(partitions: &[(&str, &Path)]) -> Result<NamedTempFile> {
    let file = NamedTempFile::new()?;
    let mut script = "label: gpt\n".to_owned();
    let mut parts = Vec::new();
    let mut start = MIB;
    for (kind, contents) in partitions {
        let length = contents.metadata()?.len();
        script += &format!("start={}, size={}, type={kind}\n", start / 512, length / 512);
        parts.push((start / MIB, contents));
        start += length.next_multiple_of(MIB);
    }
    file.as_file().set_len(start + MIB)?;
    bash(
        "printf '%s' \"$1\" | PATH=$PATH:/usr/sbin:/sbin sfdisk --quiet \"$2\"",
        &[&script, path(file.path())],
    )?;
    for (start, contents) in parts {
        bash(
            "dd status=none if=\"$1\" of=\"$2\" bs=1M seek=\"$3\" conv=sparse,notrunc",
            &[path(contents), path(file.path()), &start.to_string()],
        )?;
    }
    Ok(file)
}

fn bash(script: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new("bash").args(["-c", script, "bash"]).args(arguments).output()?;
    ensure!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// A new disk for the answer.
fn answer_disk() -> Result<NamedTempFile> {
    let file = NamedTempFile::new()?;
    file.as_file().set_len(ANSWER_DISK)?;
    Ok(file)
}

/// Runs the guest, to its end.
fn run(of: &Path, answer: &Path) -> Result<()> {
    let (kernel, initrd) = (image("boot-reader", "vmlinux"), image("boot-reader", "initrd.img"));
    let command_line = fs::read_to_string(image("boot-reader", "command-line"))?;
    let begun = Instant::now();
    let mut vmm = Vmm::run([
        "--kernel",
        path(&kernel),
        "--initrd",
        path(&initrd),
        "--cmdline",
        command_line.trim(),
        "--memory",
        &format!("{}M", MEMORY / MIB),
        "--disk",
        &disk(of, ",readonly=on"),
        "--disk",
        &disk(answer, ""),
    ])?;
    vmm.wait_for_code(0, PATIENCE)?;
    println!("read in {:.1} s", begun.elapsed().as_secs_f64());
    Ok(())
}

/// What a disk boots, as a guest reads it.
fn read(disk: &Path) -> Result<BootSource> {
    match boot::find(&File::open(disk)?) {
        Err(boot::Error::NeedsGuest { .. }) => {}
        other => bail!("no guest is needed: {other:?}"),
    }
    let answer = answer_disk()?;
    run(disk, answer.path())?;
    Ok(reader::answer(answer.as_file())?)
}

/// Why a disk does not boot.
fn refused(disk: &Path) -> Result<String> {
    match read(disk) {
        Ok(source) => bail!("it boots {:?}", source.origin),
        Err(error) if error.downcast_ref::<boot::Error>().is_some() => {
            let message = error.to_string();
            println!("{message}");
            ensure!(!message.contains('\n'), "{message}");
            Ok(message)
        }
        Err(error) => Err(error),
    }
}

fn contents(mut file: &File) -> Result<Vec<u8>> {
    let mut contents = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut contents)?;
    Ok(contents)
}

/// Checks that a disk boots the kernel of a version, with its initial RAM file system.
fn boots(disk: &Path, version: &str) -> Result<BootSource> {
    let source = read(disk)?;
    ensure!(contents(&source.kernel)? == kernel(version), "another kernel: {:?}", source.origin);
    let found = source.initrd.as_ref().context("no initial RAM file system")?;
    ensure!(contents(found)? == initrd(version), "another initial RAM file system: {:?}", source.origin);
    Ok(source)
}

/// Amazon's and others': one XFS with everything, a real kernel, and GRUB with a script of its own.
#[test]
fn xfs_with_grub() -> Result<()> {
    let vmlinuz = image("kernel", "vmlinuz");
    let script = format!(
        "kernels boot 6.1.0\ncp {} boot/vmlinuz-6.2.0\nmkdir -p boot/grub2 etc\ntouch etc/fstab\n\
         cat >boot/grub2/grub.cfg <<'END'\nset default=1\nmenuentry 'Old' {{\nlinux /boot/vmlinuz-6.1.0 root=/dev/vda2\n}}\n\
         menuentry 'New' {{\nlinux /boot/vmlinuz-6.2.0 root=/dev/vda2 ro\ninitrd /boot/initramfs-6.1.0.img\n}}\nEND",
        path(&vmlinuz)
    );
    let esp = NamedTempFile::new()?;
    esp.as_file().set_len(MIB)?;
    let root = file_system(XFS, "", &script)?;
    let source = read(gpt(&[(ESP, esp.path()), (LINUX, root.path())])?.path())?;
    ensure!(
        contents(&source.kernel)? == fs::read(image("kernel", "vmlinux"))?,
        "not the kernel of the image"
    );
    ensure!(contents(source.initrd.as_ref().context("no initrd")?)? == initrd("6.1.0"));
    assert!(source.command_line.starts_with("root=/dev/vda2 ro console=ttyS0 "), "{}", source.command_line);
    let origin = source.origin;
    assert_eq!((origin.place, &*origin.title), (Place::Partition(2), "New"));
    assert_eq!(origin.configuration.as_deref(), Some("/boot/grub2/grub.cfg"));
    assert_eq!((&*origin.kernel, &*origin.initrds[0]), ("/boot/vmlinuz-6.2.0", "/boot/initramfs-6.1.0.img"));
    Ok(())
}

/// Red Hat's and others': XFS for `/boot` too, with entries of the Boot Loader Specification.
#[test]
fn xfs_with_a_boot_file_system_of_its_own() -> Result<()> {
    let boot = file_system(
        XFS,
        "",
        "kernels . 6.1.0 6.2.0\nentry loader/entries/a-6.1.0.conf 6.1.0 ''\nentry loader/entries/a-6.2.0.conf 6.2.0 ''\n\
         mkdir grub2\necho blscfg >grub2/grub.cfg",
    )?;
    // What was there before another was mounted over it.
    let root = file_system(
        XFS,
        "",
        "mkdir etc\ntouch etc/fstab\nkernels boot 6.1.0\nentry boot/loader/entries/a.conf 6.1.0 /",
    )?;
    let source = boots(gpt(&[(XBOOTLDR, boot.path()), (LINUX, root.path())])?.path(), "6.2.0")?;
    assert_eq!(source.origin.place, Place::Partition(1));
    assert!(source.command_line.starts_with("root=UUID=1a2b ro "), "{}", source.command_line);
    Ok(())
}

/// Fedora's and others': the root file system is the subvolume `root`, and GRUB sees paths from the top.
#[test]
fn btrfs_with_a_subvolume_for_root() -> Result<()> {
    let root = file_system(
        BTRFS,
        ",compress=zstd",
        "btrfs subvolume create root >&2\nbtrfs subvolume create home >&2\nkernels root/boot 6.1.0 6.2.0\n\
         entry root/boot/loader/entries/a-6.2.0.conf 6.2.0 /root/boot\n\
         entry root/boot/loader/entries/a-6.1.0.conf 6.1.0 /root/boot",
    )?;
    let source = boots(gpt(&[(LINUX, root.path())])?.path(), "6.2.0")?;
    assert_eq!(source.origin.configuration.as_deref(), Some("/boot/loader/entries"));
    assert_eq!(source.origin.kernel, "/root/boot/vmlinuz-6.2.0");
    Ok(())
}

/// SUSE's and others': what is mounted by default is a snapshot, and others are older.
#[test]
fn btrfs_with_a_default_subvolume() -> Result<()> {
    let root = file_system(
        BTRFS,
        "",
        "btrfs subvolume create @ >&2\nmkdir -p @/.snapshots/1\nbtrfs subvolume create @/.snapshots/1/snapshot >&2\n\
         snapshot=@/.snapshots/1/snapshot\nkernels $snapshot/boot 6.2.0\nkernels @/boot 6.1.0\nmkdir {@,$snapshot}/boot/grub2\n\
         echo 'menuentry old { linux /boot/vmlinuz-6.1.0 a; initrd /boot/initramfs-6.1.0.img; }' >@/boot/grub2/grub.cfg\n\
         echo 'menuentry new { linux /boot/vmlinuz-6.2.0 a; initrd /boot/initramfs-6.2.0.img; }' >$snapshot/boot/grub2/grub.cfg\n\
         btrfs subvolume set-default $snapshot",
    )?;
    boots(gpt(&[(LINUX, root.path())])?.path(), "6.2.0")?;
    Ok(())
}

/// Nothing says what is booted, and the disk has no partitions.
#[test]
fn btrfs_without_a_boot_loader() -> Result<()> {
    let root = file_system(
        BTRFS,
        "",
        "btrfs subvolume create @ >&2\nmkdir root @/etc\ntouch @/etc/fstab\nkernels @/boot 6.1.0 6.2.0",
    )?;
    let source = boots(root.path(), "6.2.0")?;
    assert!(source.command_line.starts_with("root=/dev/vda rootflags=subvol=@ "), "{}", source.command_line);
    assert_eq!((source.origin.place, source.origin.configuration), (Place::Disk, None));
    Ok(())
}

/// What an instance that was cut off has last written is in the log and nowhere else.
#[test]
fn the_log_of_xfs_is_replayed() -> Result<()> {
    let root = file_system(
        XFS,
        "",
        "kernels boot 6.1.0\nentry boot/loader/entries/a-6.1.0.conf 6.1.0 /boot\ncd /\numount \"$MOUNTED\"\n\
         mount -o loop \"$FILE\" \"$MOUNTED\"\ncd \"$MOUNTED\"\n\
         kernels boot 6.2.0\nentry boot/loader/entries/a-6.2.0.conf 6.2.0 /boot\n\
         sync -f .\nxfs_io -x -c 'shutdown -f' .\ncd /\numount \"$MOUNTED\"\n\
         mount -o loop,ro,norecovery \"$FILE\" \"$MOUNTED\"\ncd \"$MOUNTED\"\n\
         if [[ -e boot/loader/entries/a-6.2.0.conf ]]; then echo 'there is nothing in the log' >&2; exit 1; fi",
    )?;
    let disk = gpt(&[(LINUX, root.path())])?;
    boots(disk.path(), "6.2.0")?;
    Ok(())
}

#[test]
fn the_log_of_btrfs_is_replayed() -> Result<()> {
    let root = file_system(
        BTRFS,
        ",commit=300",
        "kernels boot 6.1.0 6.2.0\nentry boot/loader/entries/a-6.1.0.conf 6.1.0 /boot\nsync\n\
         entry boot/loader/entries/a-6.2.0.conf 6.2.0 /boot\nxfs_io -c fsync boot/loader/entries/a-6.2.0.conf\n\
         cp --sparse=always \"$FILE\" \"$COPY\"",
    )?;
    let log_root = bash("PATH=$PATH:/sbin btrfs inspect-internal dump-super \"$1\"", &[path(root.path())])?;
    ensure!(!log_root.lines().any(|line| line.starts_with("log_root\t\t0")), "there is nothing in the log");
    let disk = gpt(&[(LINUX, root.path())])?;
    boots(disk.path(), "6.2.0")?;
    Ok(())
}

/// More than the guest has of memory.
#[test]
#[ignore = "takes a minute; scripts/test full runs it"]
fn a_large_initial_ram_file_system() -> Result<()> {
    let root = file_system(
        XFS,
        "",
        "kernels boot 6.1.0\nentry boot/loader/entries/a.conf 6.1.0 /boot\n\
         head -c 280M /dev/zero | tr '\\0' x >boot/initramfs-6.1.0.img",
    )?;
    let source = read(gpt(&[(LINUX, root.path())])?.path())?;
    let initrd = source.initrd.context("no initrd")?;
    assert_eq!(initrd.metadata()?.len(), 280 * MIB);
    let mut end = [0; 4096];
    initrd.read_exact_at(&mut end, 280 * MIB - 4096)?;
    assert_eq!(end, [b'x'; 4096]);
    Ok(())
}

/// A file system that Linux does not mount, one that it mounts and cannot read, and one without a kernel.
#[test]
fn what_is_broken_says_so() -> Result<()> {
    let root = file_system(XFS, "", "kernels boot 6.1.0\nentry boot/loader/entries/a.conf 6.1.0 /boot")?;
    let broken = |at: u64, length: usize| -> Result<String> {
        let copy = NamedTempFile::new()?;
        bash("cp --sparse=always \"$1\" \"$2\"", &[path(root.path()), path(copy.path())])?;
        copy.as_file().write_all_at(&vec![0x5a; length], at)?;
        refused(gpt(&[(LINUX, copy.path())])?.path())
    };
    // Within the superblock, and all that follows it.
    for (at, length) in [(100, 400), (4096, 1 << 20)] {
        let message = broken(at, length)?;
        let expected =
            "partition 1: Linux does not mount the file system: Structure needs cleaning: XFS (dm-";
        assert!(message.starts_with(expected), "{message}");
    }

    let empty = file_system(BTRFS, "", "mkdir boot")?;
    let message = refused(gpt(&[(LINUX, empty.path())])?.path())?;
    assert!(message.contains("no kernel on the disk (partition 1: btrfs without a kernel)"), "{message}");
    empty.as_file().write_all_at(b"_BHRfS_M", 0x1_0040)?;
    empty.as_file().write_all_at(&[0; 1024], 0x1_0100)?;
    let message = refused(gpt(&[(LINUX, empty.path())])?.path())?;
    assert!(message.contains("Linux does not mount the file system: Invalid argument: BTRFS e"), "{message}");
    Ok(())
}

/// A kernel that crashes over what it reads is no reason to wait. This ext4 has a feature that the host does not know,
/// and asks for a crash should there be an error in it.
#[test]
fn a_crash_ends_the_guest() -> Result<()> {
    let root = file_system(
        "mke2fs -q -t ext4 -b 4096 -O meta_bg,^resize_inode -e panic",
        "",
        "kernels boot 6.1.0\nmkdir boot/loader\nentry boot/loader/entries/a.conf 6.1.0 /boot",
    )?;
    let disk = gpt(&[(LINUX, root.path())])?;
    boots(disk.path(), "6.1.0")?;
    let block = bash("PATH=$PATH:/sbin debugfs -R 'blocks /boot' \"$1\" 2>/dev/null", &[path(root.path())])?;
    let block: u64 = block.trim().parse().with_context(|| format!("{block:?} is no block"))?;
    root.as_file().write_all_at(&[0x5a; 512], block * 4096)?;
    let disk = gpt(&[(LINUX, root.path())])?;
    let message = refused(disk.path())?;
    assert!(message.contains("Linux crashed when it was to read the disk"), "{message}");
    Ok(())
}
