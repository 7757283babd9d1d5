//! Whole disks and file systems, of the kinds that there are.

use std::ops::Range;
use std::process::Stdio;

use crate::change::{Change, Ground};
use crate::ext4::{self, FileSystem};
use crate::image::Image;
use crate::sums::le32;
use crate::table;
use crate::tools::{ESP, LINUX, Tree, XBOOTLDR, bzimage, gpt, grub_cfg, grubenv, gzip, mbr, run, tool};

/// What the files hold at most that an input may write, in bytes.
const ROOM: usize = 4096;

/// The files that an input may write, in whatever directory the boot loader's files are.
const FILES: [&str; 8] = [
    "grub/grub.cfg",
    "grub/grubenv",
    "loader/loader.conf",
    "loader/entries/a-6.1.conf",
    "loader/entries/b-6.2.conf",
    "vmlinuz-6.1",
    "vmlinuz-6.2",
    "initrd.img-6.1",
];

/// A disk to change.
pub struct Disk {
    /// The disk.
    pub image: Image,
    /// What changes refer to.
    pub ground: Ground,
    has_table: bool,
    /// Where file systems begin.
    starts: Vec<usize>,
    /// The blocks of each of the files.
    files: Vec<Vec<Range<usize>>>,
}

impl Disk {
    /// A disk that is one file system.
    fn of(file_system: Vec<u8>) -> Self {
        let files = files(&[(0, &file_system)]);
        Self::new(file_system, vec![0], files, false)
    }

    fn new(bytes: Vec<u8>, starts: Vec<usize>, files: Vec<Vec<Range<usize>>>, has_table: bool) -> Self {
        let mut structures = if has_table { table::structures(bytes.len()) } else { Vec::new() };
        let looked: Vec<_> = starts.iter().map(|start| FileSystem::look(&bytes, *start)).collect();
        looked.iter().for_each(|file_system| structures.extend(file_system.structures()));
        let ground = Ground { structures, start: looked[0].start, unit: looked[0].block_size };
        Self { image: Image::new(bytes), ground, has_table, starts, files }
    }

    /// The blocks of `grub.cfg`.
    pub fn script(&self) -> &[Range<usize>] {
        &self.files[0]
    }

    /// Carries out a change.
    pub fn change(&mut self, change: &Change) {
        change.apply(&mut self.image, &self.ground);
    }

    /// Writes one of the files from its beginning on. The rest stays, so that an input need not say all of it.
    pub fn write(&mut self, file: u8, skip: usize, mut contents: &[u8]) {
        let Some(blocks) = self.files.get(usize::from(file) % self.files.len().max(1)) else { return };
        let mut skip = skip;
        for block in blocks.clone() {
            let behind = skip.min(block.len());
            skip -= behind;
            let (now, later) = contents.split_at(contents.len().min(block.len() - behind));
            self.image.write(block.start + behind, now);
            contents = later;
        }
    }

    /// Writes one of the files so that nothing of what was there is left: a kernel or a script.
    pub fn replace(&mut self, file: u8, contents: &[u8]) {
        let Some(blocks) = self.files.get(usize::from(file) % self.files.len().max(1)) else { return };
        let room = blocks.iter().map(Range::len).sum();
        self.write(file, 0, &padded(contents, room));
    }

    /// Writes to a place in one of the file systems.
    pub fn mark(&mut self, file_system: u8, offset: usize, bytes: &[u8]) {
        let start = self.starts[usize::from(file_system) % self.starts.len()];
        self.image.write(start + offset, bytes);
    }

    /// Makes all checksums right.
    pub fn seal(&mut self) {
        self.starts.iter().for_each(|start| ext4::seal(&mut self.image, *start));
        if self.has_table {
            table::seal(&mut self.image);
        }
    }
}

/// Where the blocks of the files are, of file systems that begin at these places.
fn files(file_systems: &[(usize, &[u8])]) -> Vec<Vec<Range<usize>>> {
    let mut files = Vec::new();
    for (start, bytes) in file_systems {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let size = FileSystem::look(bytes, 0).block_size;
        let paths = ["", "boot/"].iter().flat_map(|base| FILES.map(|path| format!("blocks /{base}{path}\n")));
        let output = run(tool("debugfs").args(["-f", "-"]).arg(file.path()), &paths.collect::<String>());
        // It repeats each command before it answers, and complains elsewhere.
        for answer in output.split("debugfs:").skip(1) {
            let blocks = answer.lines().skip(1).flat_map(str::split_whitespace);
            let blocks: Vec<_> = blocks
                .map(|block| block.parse::<usize>().unwrap())
                .map(|block| start + block * size..start + (block + 1) * size)
                .collect();
            if !blocks.is_empty() {
                files.push(blocks);
            }
        }
    }
    files
}

/// What passes for a kernel, and is small.
pub fn vmlinux() -> Vec<u8> {
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(64, 0);
    elf[18..20].copy_from_slice(&[62, 0]);
    elf.extend((0..3000_u32).map(|at| ((at * at) >> 7) as u8));
    elf
}

fn padded(contents: impl AsRef<[u8]>, length: usize) -> Vec<u8> {
    let mut contents = contents.as_ref().to_vec();
    contents.resize(length.max(contents.len()), b'\n');
    contents
}

/// What a boot loader and a kernel have in a directory.
fn with_boot(tree: Tree, base: &str, has_script: bool) -> Tree {
    let directory = if base.is_empty() { "" } else { "/boot" };
    let entry = |version: &str| {
        format!(
            "title Linux {version}\nversion {version}\nlinux {directory}/vmlinuz-6.1\n\
             initrd {directory}/initrd.img-6.1\noptions $kernelopts quiet\n"
        )
    };
    let tree = tree
        .with(&format!("{base}vmlinuz-6.1"), padded(bzimage(&gzip(&vmlinux())), ROOM))
        .with(&format!("{base}initrd.img-6.1"), "initrd ".repeat(300))
        .with(&format!("{base}grub/grubenv"), grubenv("saved_entry=b-6.2\nkernelopts=root=UUID=5f ro\n"))
        .with(&format!("{base}loader/loader.conf"), padded("default b*\n", 1024))
        .with(&format!("{base}loader/entries/a-6.1.conf"), padded(entry("6.1"), 1024))
        .with(&format!("{base}loader/entries/b-6.2.conf"), padded(entry("6.2"), 1024));
    if has_script {
        let script = grub_cfg("0", directory, &["6.1"]).replace("submenu", "blscfg\nsubmenu");
        return tree.with(&format!("{base}grub/grub.cfg"), padded(script, ROOM));
    }
    tree
}

/// A root file system with something of everything that an extent tree, a block map and a directory may have.
fn root() -> Tree {
    let long = "a-name-of-many-letters".repeat(4);
    let mut tree = with_boot(Tree::new(), "boot/", true)
        .with("etc/fstab", "")
        .with_link("vmlinuz", "boot/vmlinuz-6.1")
        .with_link("initrd", &format!("{}boot/initrd.img-6.1", "./".repeat(40)))
        .with_link("round", "round");
    for number in 0..20 {
        tree = tree.with(&format!("many/{number}-{long}"), "");
    }
    let holes = std::fs::File::create(tree.path().join("holes")).unwrap();
    holes.set_len(300 << 10).unwrap();
    for piece in 0..12 {
        std::os::unix::fs::FileExt::write_all_at(&holes, b"piece", piece * (24 << 10)).unwrap();
    }
    tree
}

/// A journal with a transaction, one that is revoked, and one more, as an unclean end leaves it.
fn with_log(file_system: &[u8], checksums: &str) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), file_system).unwrap();
    let blocks = files(&[(0, file_system)]);
    let size = FileSystem::look(file_system, 0).block_size;
    let (script, entry) = (blocks[0][0].start / size, blocks[3][0].start / size);
    let new = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(new.path(), &file_system[script * size..][..size]).unwrap();
    let new = new.path().display();
    let commands =
        format!("jo {checksums}\njw -b {script},{entry} {new}\njw -r {entry}\njw -b {script} {new}\njc\n");
    run(tool("debugfs").args(["-w", "-f", "-"]).arg(file.path()), &commands);
    std::fs::read(file.path()).unwrap()
}

/// With indices for its directories.
fn with_indices(file_system: &[u8]) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), file_system).unwrap();
    let mut check = tool("e2fsck");
    check.args(["-fyD"]).arg(file.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    assert!(check.status().unwrap().code().is_some_and(|code| code <= 1), "{check:?}");
    std::fs::read(file.path()).unwrap()
}

const UNCHECKED: &str = "^metadata_csum,^64bit";

/// File systems of every kind, each a disk of its own.
pub fn file_systems() -> Vec<Disk> {
    let root = root();
    let make =
        |mib, options: &str| root.mke2fs(mib, &[&["-t"], &*options.split(' ').collect::<Vec<_>>()].concat());
    let checked = make(2, "ext4 -b 1024");
    let kinds = [
        with_indices(&checked),
        checked,
        make(2, &format!("ext4 -b 1024 -O {UNCHECKED}")),
        make(2, "ext2 -b 1024"),
        make(2, "ext2 -b 1024 -I 128 -r 0"),
        make(16, "ext4 -b 4096 -O metadata_csum_seed,bigalloc,large_dir,ea_inode,mmp,casefold"),
        with_log(&make(6, "ext4 -b 1024"), "-c"),
        with_log(&make(6, &format!("ext4 -b 1024 -O {UNCHECKED}")), ""),
    ];
    kinds.into_iter().map(Disk::of).collect()
}

/// A file system with an empty journal that it says has to be replayed.
pub fn with_journal() -> Disk {
    let tree = with_boot(Tree::new(), "boot/", true);
    let mut image = Image::new(tree.mke2fs(6, &["-t", "ext4", "-b", "1024"]));
    let features = le32(image.bytes(), 1024 + 0x60) | ext4::NEEDS_RECOVERY;
    image.write(1024 + 0x60, &features.to_le_bytes());
    ext4::seal(&mut image, 0);
    Disk::of(image.bytes().to_vec())
}

/// Disks of every kind.
pub fn disks() -> Vec<Disk> {
    const MIB: usize = 1 << 20;
    let boot = with_boot(Tree::new(), "", false).mke2fs(1, &["-t", "ext4", "-b", "1024"]);
    let script = with_boot(Tree::new(), "", true).mke2fs(1, &["-t", "ext4", "-b", "1024"]);
    let root = with_boot(Tree::new().with("etc/fstab", ""), "boot/", true);
    let plain = Tree::new()
        .with("etc/fstab", "")
        .with("boot/vmlinuz-6.1", bzimage(&gzip(&vmlinux())))
        .with("boot/vmlinuz-6.2", vmlinux());
    let (checked, unchecked) = (
        root.mke2fs(2, &["-t", "ext4", "-b", "1024"]),
        root.mke2fs(2, &["-t", "ext4", "-b", "1024", "-O", UNCHECKED]),
    );
    let plain = plain.mke2fs(1, &["-t", "ext4", "-b", "1024"]);
    let separate = Tree::new().with("vmlinuz-6.1", vmlinux()).mke2fs(1, &["-t", "ext4", "-b", "1024"]);
    let system = Tree::new().with("etc/fstab", "").mke2fs(1, &["-t", "ext4", "-b", "1024"]);
    let blank = Tree::new().mke2fs(1, &["-t", "ext4", "-b", "1024"]);
    let with_table = |bytes: Vec<u8>, file_systems: &[(usize, &[u8])]| {
        let starts = file_systems.iter().map(|(start, _)| *start).collect();
        Disk::new(bytes, starts, files(file_systems), true)
    };
    vec![
        Disk::of(checked.clone()),
        Disk::of(plain.clone()),
        with_table(gpt(&[(LINUX, &checked)]), &[(MIB, &checked)]),
        with_table(mbr(&[&unchecked], &[]), &[(MIB, &unchecked)]),
        with_table(mbr(&[&plain], &[]), &[(MIB, &plain)]),
        with_table(gpt(&[(LINUX, &separate), (LINUX, &system)]), &[(MIB, &separate), (2 * MIB, &system)]),
        with_table(mbr(&[&blank], &[&blank, &script]), &[(5 * MIB, &script), (3 * MIB, &blank)]),
        with_table(
            gpt(&[(ESP, &vec![0; MIB]), (XBOOTLDR, &boot), (LINUX, &blank)]),
            &[(2 * MIB, &boot), (3 * MIB, &blank)],
        ),
    ]
}
