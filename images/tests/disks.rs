//! What disks of all shapes boot. They are made with `mke2fs`, `sfdisk` and `debugfs`, which know nothing of our reader.

mod common;

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::path::Path;

use common::{
    ESP, LINUX, Tree, XBOOTLDR, bzimage, gpt, grub_cfg, grubenv, gzip, mbr, partition_uuid, run, tool,
    vmlinux, vmlinuz,
};
use innkeeper_images::boot::tree::Tree as _;
use innkeeper_images::boot::{self, BootSource, Error, Place};

fn find(disk: &[u8]) -> Result<BootSource, Error> {
    boot::find(&disk)
}

fn contents(mut file: &File) -> Vec<u8> {
    let mut contents = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut contents).unwrap();
    contents
}

/// Checks that a disk boots the kernel of a version, with its initial RAM file system.
#[track_caller]
fn boots(disk: &[u8], version: &str) -> BootSource {
    let source = find(disk).unwrap_or_else(|error| panic!("{error}"));
    assert!(contents(&source.kernel) == vmlinux(version), "{:?}", source.origin);
    assert!(contents(source.initrd.as_ref().unwrap()) == initrd(version), "{:?}", source.origin);
    source
}

fn initrd(version: &str) -> Vec<u8> {
    format!("initrd of {version}. ").repeat(5000).into_bytes()
}

/// A tree with these kernels in a directory.
fn kernels(tree: Tree, directory: &str, versions: &[&str]) -> Tree {
    versions.iter().fold(tree, |tree, version| {
        tree.with(&format!("{directory}vmlinuz-{version}"), vmlinuz(version))
            .with(&format!("{directory}initrd.img-{version}"), initrd(version))
    })
}

/// The root file system of a Debian with two kernels.
fn debian(default: &str) -> Tree {
    kernels(Tree::new(), "boot/", &["6.1.0-40", "6.1.0-39"])
        .with("boot/grub/grub.cfg", grub_cfg(default, "/boot", &["6.1.0-40", "6.1.0-39"]))
        .with("boot/grub/grubenv", grubenv("saved_entry=advanced>advanced-6.1.0-39\n"))
        .with("etc/fstab", "")
        .with_link("vmlinuz", "boot/vmlinuz-6.1.0-40")
}

const MACHINE: &str = "console=ttyS0 8250.nr_uarts=1 tsc=reliable random.trust_cpu=on cryptomgr.notests i8042.noaux i8042.nokbd";

#[test]
fn gpt_with_one_root_file_system() {
    let source = boots(&gpt(&[(LINUX, &debian("0").ext4(8))]), "6.1.0-40");
    assert_eq!(source.command_line, format!("root=UUID=1a2b ro quiet {MACHINE}"));
    let origin = source.origin;
    assert_eq!(origin.place, Place::Partition(1));
    assert_eq!(origin.configuration.as_deref(), Some("/boot/grub/grub.cfg"));
    assert_eq!((&*origin.title, &*origin.kernel), ("Debian GNU/Linux", "/boot/vmlinuz-6.1.0-40"));
    assert_eq!(origin.initrds, ["/boot/initrd.img-6.1.0-40"]);
}

#[test]
fn what_is_found_cannot_be_changed() {
    let source = boots(&debian("0").ext4(8), "6.1.0-40");
    for file in [source.kernel, source.initrd.unwrap()] {
        file.set_len(1 << 20).unwrap_err();
        file.set_len(1).unwrap_err();
        std::os::unix::fs::FileExt::write_at(&file, b"x", 0).unwrap_err();
    }
}

#[test]
fn the_default_entry() {
    for (default, version) in [
        ("0", "6.1.0-40"),
        ("1>1", "6.1.0-39"),
        ("simple", "6.1.0-40"),
        ("advanced>advanced-6.1.0-39", "6.1.0-39"),
        ("Advanced options>Debian GNU/Linux, with Linux 6.1.0-39", "6.1.0-39"),
        ("${saved_entry}", "6.1.0-39"),
    ] {
        boots(&debian(default).ext4(8), version);
    }
}

#[test]
fn mbr_with_primary_and_logical_partitions() {
    let (root, empty) = (debian("0").ext4(8), Tree::new().ext4(2));
    assert_eq!(boots(&mbr(&[&empty, &root], &[]), "6.1.0-40").origin.place, Place::Partition(2));
    assert_eq!(boots(&mbr(&[&empty], &[&empty, &root]), "6.1.0-40").origin.place, Place::Partition(6));
}

#[test]
fn a_disk_without_partitions_but_with_a_boot_sector() {
    let mut disk = debian("0").ext4(8);
    for code in [0, 0xeb] {
        disk[..510].fill(code);
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(boots(&disk, "6.1.0-40").origin.place, Place::Disk);
    }
}

#[test]
fn a_disk_in_a_file() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&debian("0").ext4(8)).unwrap();
    let source = boot::find(&file).unwrap();
    assert_eq!(source.origin.place, Place::Disk);
    assert!(contents(&source.kernel) == vmlinux("6.1.0-40"));
}

#[test]
fn a_boot_file_system_of_its_own() {
    let root = Tree::new()
        .with("etc/fstab", "")
        // What was there before /boot was mounted over it.
        .with("boot/grub/grub.cfg", grub_cfg("0", "/boot", &["5.10"]))
        .ext4(2);
    for directory in ["", "/boot"] {
        let boot = kernels(Tree::new(), "", &["6.1.0-40"])
            .with("grub/grub.cfg", grub_cfg("0", directory, &["6.1.0-40"]))
            .ext4(4);
        for partitions in [[(LINUX, &*root), (LINUX, &*boot)], [(XBOOTLDR, &boot), (LINUX, &root)]] {
            let source = boots(&gpt(&partitions), "6.1.0-40");
            assert_eq!(source.origin.configuration.as_deref(), Some("/grub/grub.cfg"));
        }
        boots(&mbr(&[&boot, &root], &[]), "6.1.0-40");
    }
}

#[test]
fn entries_of_the_boot_loader_specification() {
    let entry = |version: &str| {
        format!(
            "title Fedora {version}\nversion {version}\nlinux /vmlinuz-{version}\ninitrd /initrd.img-{version}\noptions $kernelopts\n"
        )
    };
    let tree = || {
        kernels(Tree::new(), "", &["6.9.1", "6.10.1"])
            .with("loader/entries/0f-6.9.1.conf", entry("6.9.1"))
            .with("loader/entries/0f-6.10.1.conf", entry("6.10.1"))
            .with("grub2/grubenv", grubenv("kernelopts=root=UUID=5f ro\n"))
    };
    let cfg = "load_env\nset default=\"${saved_entry}\"\nblscfg\n";
    for (tree, version) in [
        (tree(), "6.10.1"),
        (tree().with("grub2/grub.cfg", cfg), "6.10.1"),
        (
            tree().with("grub2/grubenv", grubenv("saved_entry=0f-6.9.1\nkernelopts=root=UUID=5f ro\n")),
            "6.9.1",
        ),
        (
            tree()
                .with("grub2/grub.cfg", cfg)
                .with("grub2/grubenv", grubenv("saved_entry=0f-6.9.1\nkernelopts=root=UUID=5f ro\n")),
            "6.9.1",
        ),
        (tree().with("loader/loader.conf", "default 0f-6.9*\n"), "6.9.1"),
    ] {
        let mut btrfs = vec![0; 1 << 20];
        btrfs[0x1_0040..0x1_0048].copy_from_slice(b"_BHRfS_M");
        let source =
            boots(&gpt(&[(ESP, &[0; 1 << 20]), (XBOOTLDR, &tree.ext4(4)), (LINUX, &btrfs)]), version);
        assert_eq!(source.command_line, format!("root=UUID=5f ro {MACHINE}"));
        assert_eq!(source.origin.place, Place::Partition(2));
    }
}

#[test]
fn without_a_configuration_it_is_the_highest_version() {
    let versions = ["6.1.0-9", "6.1.0-10"];
    let root = kernels(Tree::new(), "boot/", &versions).with("etc/fstab", "").ext4(8);
    let line = |disk: &[u8]| boots(disk, "6.1.0-10").command_line;
    let uuid = |number| format!("root=PARTUUID={} {MACHINE}", partition_uuid(number));
    assert_eq!(line(&gpt(&[(ESP, &[0; 1 << 20]), (LINUX, &root)])), uuid(2));
    assert_eq!(line(&mbr(&[&root], &[])), format!("root=/dev/vda1 {MACHINE}"));
    assert_eq!(line(&root), format!("root=/dev/vda {MACHINE}"));
    // With a /boot of its own the root is elsewhere, maybe where we cannot look.
    let boot = kernels(Tree::new(), "", &versions).ext4(4);
    assert_eq!(line(&gpt(&[(LINUX, &boot), (LINUX, &Tree::new().with("etc/fstab", "").ext4(2))])), uuid(2));
    let mut xfs = vec![0; 1 << 20];
    xfs[..4].copy_from_slice(b"XFSB");
    assert_eq!(line(&gpt(&[(LINUX, &boot), (LINUX, &xfs)])), uuid(2));
    let error = find(&gpt(&[(LINUX, &boot)])).unwrap_err();
    assert!(matches!(error, Error::NoRoot), "{error}");
}

#[test]
fn other_file_systems_are_for_a_guest() {
    for (offset, mark, name) in [(0, &b"XFSB"[..], "XFS"), (0x1_0040, b"_BHRfS_M", "btrfs")] {
        let mut root = vec![0; 1 << 20];
        root[offset..][..mark.len()].copy_from_slice(mark);
        for (disk, place) in [
            (root.clone(), Place::Disk),
            (gpt(&[(LINUX, &Tree::new().ext4(2)), (LINUX, &root)]), Place::Partition(2)),
            (mbr(&[&root], &[]), Place::Partition(1)),
        ] {
            let error = find(&disk).unwrap_err();
            match &error {
                Error::NeedsGuest { place: found, file_system } => {
                    assert_eq!((*found, &**file_system), (place, name))
                }
                _ => panic!("{error}"),
            }
        }
    }
    // What this reader of ext4 does not know, Linux may.
    let new = debian("0").mke2fs(8, &["-t", "ext4", "-O", "meta_bg,^resize_inode"]);
    let error = find(&new).unwrap_err();
    assert!(error.to_string().contains("is ext4 (with meta block groups), which only a guest"), "{error}");
}

#[test]
fn a_disk_without_a_kernel_says_what_it_has() {
    let mut luks = vec![0; 1 << 20];
    luks[..6].copy_from_slice(b"LUKS\xba\xbe");
    let mut fat = vec![0; 1 << 20];
    fat[0x36..0x39].copy_from_slice(b"FAT");
    let disk = gpt(&[(ESP, &fat), (LINUX, &luks), (LINUX, &Tree::new().ext4(2)), (LINUX, &[0; 1 << 20])]);
    assert_eq!(
        find(&disk).unwrap_err().to_string(),
        "there is no kernel on the disk (partition 1: FAT; partition 2: LUKS, an encrypted volume; partition 3: ext4 \
         without a kernel; partition 4: nothing that is known): an image needs one in /boot, in ext4, XFS or btrfs, with \
         or without a partition table"
    );
    assert!(find(&[0; 1 << 20]).unwrap_err().to_string().contains("the disk: nothing that is known"));
}

#[test]
fn an_upgrade_boots_the_new_kernel() {
    let image = tempfile::NamedTempFile::new().unwrap();
    fs::write(image.path(), debian("0").ext4(8)).unwrap();
    let disk = || fs::read(image.path()).unwrap();
    boots(&disk(), "6.1.0-40");
    let new = kernels(Tree::new(), "", &["6.1.0-41"])
        .with("cfg", grub_cfg("0", "/boot", &["6.1.0-41", "6.1.0-40"]));
    let path = |name: &str| new.path().join(name).display().to_string();
    debugfs(
        image.path(),
        &format!(
            "cd /boot\nwrite {} vmlinuz-6.1.0-41\nwrite {} initrd.img-6.1.0-41\nrm vmlinuz-6.1.0-39\n\
             cd grub\nrm grub.cfg\nwrite {} grub.cfg\n",
            path("vmlinuz-6.1.0-41"),
            path("initrd.img-6.1.0-41"),
            path("cfg"),
        ),
    );
    boots(&disk(), "6.1.0-41");
}

fn debugfs(image: &Path, commands: &str) -> String {
    run(tool("debugfs").args(["-w", "-f", "-"]).arg(image), commands)
}

#[test]
fn every_kind_of_ext_file_system() {
    // Enough names for an index, and enough contents for all levels of the old block map.
    let mut tree = debian("0").with("boot/large", "x".repeat(6 << 20));
    for number in 0..1500 {
        tree = tree.with(&format!("boot/some-file-with-a-long-name-{number}"), "");
    }
    for options in [
        &["-t", "ext4"][..],
        &["-t", "ext4", "-b", "1024"],
        &["-t", "ext4", "-b", "4096", "-O", "^metadata_csum,^64bit"],
        &["-t", "ext4", "-O", "metadata_csum_seed,bigalloc,large_dir,ea_inode,mmp,casefold"],
        &["-t", "ext4", "-O", "^has_journal,^flex_bg", "-g", "1024", "-b", "1024"],
        &["-t", "ext3", "-b", "1024"],
        &["-t", "ext2", "-b", "4096"],
        &["-t", "ext2", "-b", "1024", "-I", "128", "-r", "0"],
    ] {
        let image = tree.mke2fs(24, options);
        boots(&image, "6.1.0-40");
        let budget = std::cell::Cell::new(boot::BUDGET);
        let bytes = image.as_slice();
        let file_system =
            boot::ext4::FileSystem::open(boot::Region::whole(&bytes, &budget).unwrap()).unwrap();
        assert!(file_system.read("boot/large", 6 << 20).unwrap() == vec![b'x'; 6 << 20], "{options:?}");
        assert_eq!(file_system.names("/boot").unwrap().len(), 1506, "{options:?}");
        assert!(file_system.exists("/boot/some-file-with-a-long-name-1499").unwrap(), "{options:?}");
        assert!(!file_system.exists("/boot/some-file-with-a-long-name-1500").unwrap(), "{options:?}");
    }
}

#[test]
fn symbolic_links_and_holes() {
    let long = format!("{}vmlinuz-6.1.0-40", "./".repeat(60));
    let tree = debian("0")
        .with("boot/grub/grub.cfg", "menuentry x { linux /link a; initrd /holes }")
        .with_link("link", "sub/../boot/other")
        .with_link("boot/other", &long)
        .with("sub/x", "");
    let holes = File::create(tree.path().join("holes")).unwrap();
    holes.set_len(3 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&holes, b"middle", 1 << 20).unwrap();
    let source = find(&tree.ext4(8)).unwrap();
    assert!(contents(&source.kernel) == vmlinux("6.1.0-40"));
    let initrd = contents(&source.initrd.unwrap());
    assert_eq!((initrd.len(), &initrd[1 << 20..][..6]), (3 << 20, &b"middle"[..]));
    assert_eq!(initrd.iter().filter(|byte| **byte != 0).count(), 6);
}

#[test]
fn several_initial_ram_file_systems_are_put_together() {
    let tree = debian("0")
        .with(
            "boot/grub/grub.cfg",
            "menuentry x { linux /vmlinuz a; initrd /boot/ucode /boot/initrd.img-6.1.0-40 }",
        )
        .with("boot/ucode", "12345");
    let initrds = contents(&find(&tree.ext4(8)).unwrap().initrd.unwrap());
    assert_eq!(&initrds[..8], b"12345\0\0\0");
    assert!(initrds[8..] == initrd("6.1.0-40"));
}

#[test]
fn kernels_that_are_booted_as_they_are() {
    let elf = vmlinux("x");
    let bzip2 = bzimage(b"BZh91AY&SY and so on");
    for kernel in [elf, bzip2] {
        let tree = Tree::new().with("boot/vmlinuz-6.1", &kernel);
        let source = find(&tree.ext4(4)).unwrap();
        assert!(contents(&source.kernel) == kernel);
        assert!(source.initrd.is_none());
    }
    let zstd = |kernel: &[u8]| {
        [zstd::encode_all(kernel, 1).unwrap(), (kernel.len() as u32).to_le_bytes().to_vec()].concat()
    };
    let tree = Tree::new().with("boot/vmlinuz-6.1", bzimage(&zstd(&vmlinux("zstd"))));
    assert!(contents(&find(&tree.ext4(4)).unwrap().kernel) == vmlinux("zstd"));
    assert!(matches!(
        find(&Tree::new().with("boot/vmlinuz-6.1", bzimage(&gzip(b"no kernel"))).ext4(4)),
        Err(Error::Kernel { .. })
    ));
}

#[test]
fn a_gpt_whose_beginning_is_lost_has_a_backup() {
    let good = gpt(&[(LINUX, &debian("0").ext4(8))]);
    for range in [512..1024, 520..524, 1024..4096] {
        let mut disk = good.clone();
        disk[range].fill(0xff);
        boots(&disk, "6.1.0-40");
        let end = disk.len() - 512;
        disk[end..].fill(0xff);
        assert!(matches!(find(&disk), Err(Error::Partitions(_))));
    }
}

/// After an unclean end the newest is in the journal only.
#[test]
fn the_journal_is_replayed() {
    let old = debian("0");
    // The same length, so that no other block changes.
    let cfg = fs::read_to_string(old.path().join("boot/grub/grub.cfg")).unwrap();
    let new = tempfile::NamedTempFile::new().unwrap();
    fs::write(
        new.path(),
        format!(
            "{:\n<4096}",
            cfg.replacen("vmlinuz-6.1.0-40", "vmlinuz-6.1.0-39", 1).replacen(
                "initrd.img-6.1.0-40",
                "initrd.img-6.1.0-39",
                1
            )
        ),
    )
    .unwrap();
    for (features, checksums) in [("64bit,metadata_csum", "-c"), ("^64bit,^metadata_csum", "")] {
        let image = tempfile::NamedTempFile::new().unwrap();
        fs::write(image.path(), old.mke2fs(16, &["-t", "ext4", "-b", "4096", "-O", features])).unwrap();
        let disk = || fs::read(image.path()).unwrap();
        let block = debugfs(image.path(), "blocks /boot/grub/grub.cfg\n");
        let block = block.lines().find_map(|line| line.trim().parse::<u64>().ok()).expect(&block);
        boots(&disk(), "6.1.0-40");
        let new = new.path().display();
        let log = debugfs(image.path(), &format!("jo {checksums}\njw -b {block} {new}\njc\n"));
        boots(&disk(), "6.1.0-39");
        // A revocation takes it back.
        debugfs(image.path(), &format!("jo {checksums}\njw -r {block}\njc\n"));
        boots(&disk(), "6.1.0-40");
        debugfs(image.path(), &format!("jo {checksums}\njw -b {block} {new}\njc\n"));
        boots(&disk(), "6.1.0-39");
        // e2fsck replays it for good, and means the same by it.
        let mut check = tool("e2fsck");
        check.args(["-y", "-E", "journal_only"]).arg(image.path()).stdin(std::process::Stdio::null());
        let output = check.output().unwrap();
        assert!(output.status.code().is_some_and(|code| code <= 1), "{log} {output:?}");
        boots(&disk(), "6.1.0-39");
    }
}
