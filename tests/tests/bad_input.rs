//! Whatever is wrong with what a user gives us: one line that names it, and an exit status. Nothing is left
//! running, and nothing hangs.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use innkeeper_tests::{path, payload, program};

/// Files of all the wrong kinds.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        let kernel = std::fs::read(payload("hello")).unwrap();
        let mut noise = 12345u32;
        let random: Vec<u8> = (0..100_000)
            .map(|_| {
                noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (noise >> 24) as u8
            })
            .collect();
        files.write("empty", &[]);
        files.write("random", &random);
        files.write("elf-head", &kernel[..40]);
        files.write("elf-half", &kernel[..kernel.len() / 2]);
        files.write("elf-32", &edit(&kernel, &[(4, &[1])]));
        files.write("elf-arm", &edit(&kernel, &[(18, &[183, 0])]));
        // Program headers: beyond the file's end; a segment at 3.9 GiB, at 0, and one that is endless.
        files.write("elf-headers", &edit(&kernel, &[(32, &u64::MAX.to_le_bytes())]));
        let segments = u64::from_le_bytes(kernel[32..40].try_into().unwrap()) as usize;
        for (name, field, value) in [
            ("elf-high", 24, 0xf000_0000u64),
            ("elf-low", 24, 0),
            ("elf-endless", 40, u64::MAX),
            ("elf-huge-file", 32, u64::MAX),
        ] {
            let changes: Vec<(usize, Vec<u8>)> = load_segments(&kernel, segments)
                .map(|at| (at + field, value.to_le_bytes().to_vec()))
                .collect();
            let changes: Vec<(usize, &[u8])> =
                changes.iter().map(|(at, bytes)| (*at, bytes.as_slice())).collect();
            files.write(name, &edit(&kernel, &changes));
        }
        files.write("elf-many", &edit(&kernel, &[(56, &u16::MAX.to_le_bytes())]));
        files.write("bz-old", &bzimage(&[(0x206, &[0x05, 0x02])]));
        files.write("bz-32", &bzimage(&[(0x236, &[0, 0])]));
        files.write("bz-low", &bzimage(&[(0x214, &0x1000u32.to_le_bytes())]));
        files.write("bz-huge", &bzimage(&[(0x260, &u32::MAX.to_le_bytes())]));
        files.write("bz-setup", &bzimage(&[(0x1f1, &[255])]));
        files.sparse("kernel-1T", 1 << 40);
        files.sparse("initrd-1G", 1 << 30);
        files.sparse("small-disk", 511);
        files.sparse("disk", 4096);
        nix::unistd::mkfifo(&files.path("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        files
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: &[u8]) {
        std::fs::write(self.path(name), content).unwrap();
    }

    fn sparse(&self, name: &str, size: u64) {
        std::fs::File::create(self.path(name)).unwrap().set_len(size).unwrap();
    }
}

fn edit(content: &[u8], changes: &[(usize, &[u8])]) -> Vec<u8> {
    let mut content = content.to_vec();
    for (at, bytes) in changes {
        content[*at..at + bytes.len()].copy_from_slice(bytes);
    }
    content
}

/// Where the program headers of type LOAD are.
fn load_segments(kernel: &[u8], table: usize) -> impl Iterator<Item = usize> + '_ {
    const SIZE: usize = 56;
    let count = usize::from(u16::from_le_bytes([kernel[56], kernel[57]]));
    (0..count).map(move |index| table + index * SIZE).filter(|at| kernel[*at] == 1)
}

/// A bzImage that would be good but for `changes`.
fn bzimage(changes: &[(usize, &[u8])]) -> Vec<u8> {
    let good: [(usize, &[u8]); 7] = [
        (0x1f1, &[1]),                        // setup_sects
        (0x202, b"HdrS"),                     // header
        (0x206, &[0x0f, 0x02]),               // version 2.15
        (0x211, &[1]),                        // loadflags: LOADED_HIGH
        (0x214, &0x10_0000u32.to_le_bytes()), // code32_start
        (0x236, &[1, 0]),                     // xloadflags: XLF_KERNEL_64
        (0x260, &0x1000u32.to_le_bytes()),    // init_size
    ];
    edit(&edit(&vec![0; 8192], &good), changes)
}

/// Arguments with `@name` for a file of that name, the words to expect in the message, and the exit status.
type Case = (&'static str, &'static str, i32);

const ERROR: i32 = 1;
const USAGE: i32 = 2;

const CASES: &[Case] = &[
    ("--kernel @missing", "cannot open kernel", ERROR),
    ("--kernel @empty", "kernel: the file is empty", ERROR),
    ("--kernel @random", "neither an x86-64 ELF file nor a bzImage", ERROR),
    ("--kernel @pipe", "kernel: it is not a regular file", ERROR),
    ("--kernel /", "kernel: it is not a regular file", ERROR),
    ("--kernel /dev/zero", "kernel: it is not a regular file", ERROR),
    ("--kernel @kernel-1T", "kernels are at most", ERROR),
    ("--kernel @elf-head", "failed to fill whole buffer", ERROR),
    ("--kernel @elf-half", "truncated", ERROR),
    ("--kernel @elf-32", "neither an x86-64 ELF", ERROR),
    ("--kernel @elf-arm", "neither an x86-64 ELF", ERROR),
    ("--kernel @elf-headers", "reading it failed", ERROR),
    ("--kernel @elf-high", "damaged or truncated, or it does not fit", ERROR),
    ("--kernel @elf-low", "below 1 MiB", ERROR),
    ("--kernel @elf-endless", "does not fit|needs memory up to", ERROR),
    ("--kernel @elf-huge-file", "too many bytes to load", ERROR),
    ("--kernel @elf-many", "too many segments", ERROR),
    ("--kernel @bz-old", "no 64-bit entry point", ERROR),
    ("--kernel @bz-32", "no 64-bit entry point", ERROR),
    ("--kernel @bz-low", "damaged or truncated, or it does not fit", ERROR),
    ("--kernel @bz-huge", "give the guest more memory", ERROR),
    ("--kernel @bz-setup", "damaged or truncated, or it does not fit", ERROR),
    ("--kernel @good --initrd @missing", "cannot open initrd", ERROR),
    ("--kernel @good --initrd @empty", "initrd: the file is empty", ERROR),
    ("--kernel @good --initrd @pipe", "initrd: it is not a regular file", ERROR),
    ("--kernel @good --initrd @initrd-1G", "do not fit", ERROR),
    ("--kernel @good --memory 0", "cannot have 0 bytes of memory", ERROR),
    ("--kernel @good --memory 1G1", "a size is a number", USAGE),
    ("--kernel @good --memory 257G", "takes 4M to 256G", ERROR),
    ("--kernel @good --memory 16777215T", "takes 4M to 256G", ERROR),
    ("--kernel @good --memory 99999999T", "a size is a number", USAGE),
    ("--kernel @good --memory 4194305", "in steps of 4K", ERROR),
    ("--kernel @good --cpus 0", "0 is not in 1..=32", USAGE),
    ("--kernel @good --cpus 33", "33 is not in 1..=32", USAGE),
    ("--kernel @good --disk path=@missing,format=raw", "cannot open disk", ERROR),
    ("--kernel @good --disk path=@empty,format=raw", "less than one sector", ERROR),
    ("--kernel @good --disk path=@small-disk,format=raw", "less than one sector", ERROR),
    (
        "--kernel @good --disk path=/,format=raw,readonly=on",
        "neither a regular file nor a block device",
        ERROR,
    ),
    ("--kernel @good --disk path=/dev/null,format=raw", "neither a regular file nor a block device", ERROR),
    ("--kernel @good --disk path=@pipe,format=raw", "neither a regular file nor a block device", ERROR),
    ("--kernel @good --disk path=@disk,format=raw --disk path=@disk,format=raw", "it is in use", ERROR),
    ("--kernel @good --disk path=@disk", "format=… is missing", USAGE),
    ("--kernel @good --disk path=@disk,format=qcow2", "it is raw or layered", USAGE),
    ("--kernel @good --disk path=@disk,format=layered", "DATA:MAP of each layer", USAGE),
    ("--kernel @good --disk path=@disk:@disk,format=layered", "a file of layer 0 is there twice", ERROR),
    ("--kernel @good --disk path=@disk:@missing,format=layered", "cannot open disk", ERROR),
    (
        "--kernel @good --disk path=@disk:@small-disk,format=layered",
        "the map file of layer 0 cannot be used",
        ERROR,
    ),
    (
        "--kernel @good --disk path=@good:@disk,format=layered",
        "the file holds no map: it has no header",
        ERROR,
    ),
    ("--kernel @good --disk path=@disk,format=raw,serial=abcdefghijklmnopqrstu", "at most 20", USAGE),
    ("--kernel @good --tap inktest-no-tap", "there is no such interface", ERROR),
    ("--kernel @good --tap lo", "not a tap", ERROR),
    ("--kernel @good --tap tap0,mac=01:00:00:00:00:00", "multicast", USAGE),
    ("--kernel @good --serial file=/nonexistent/x", "cannot create /nonexistent/x", ERROR),
    ("--kernel @good --serial file=@pipe", "cannot create", ERROR),
    ("--kernel @good --serial tty", "stdio, file=FILE or none", USAGE),
    ("--kernel @good --smbios uuid=1", "uuid=1", USAGE),
    ("--kernel @good --disk path=@disk,format=raw,queues=17", "1 to 16 queues", ERROR),
    ("--kernel @good --tap lo,queues=9", "1 to 8 pairs", USAGE),
    ("--kernel @good --virtio-console stdio", "only one console", ERROR),
    ("--kernel @good --vsock cid=2", "context id", ERROR),
    ("--kernel @good --vsock path=@new", "cid=… is missing", USAGE),
    ("--kernel @good --control @disk", "is there one already?", ERROR),
    ("--kernel @good --control /nonexistent/x", "cannot make the socket", ERROR),
    ("--kernel @good --cmdline @long", "longer than the 2047 bytes", ERROR),
    ("--initrd @good", "--kernel", USAGE),
];

#[test]
fn each_gets_one_line_and_an_exit_status() {
    let files = Files::new();
    std::fs::copy(payload("hello"), files.path("good")).unwrap();
    let mut failures = Vec::new();
    for (arguments, words, code) in CASES {
        if let Err(problem) = check(&files, arguments, words, *code) {
            failures.push(format!("{arguments}: {problem}"));
        }
    }
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), CASES.len(), failures.join("\n"));
}

fn check(files: &Files, arguments: &str, words: &str, code: i32) -> Result<(), String> {
    let long = "x".repeat(3000);
    let arguments = arguments.split(' ').map(|word| match word.split_once('@') {
        Some((_, "long")) => long.clone(),
        Some((before, name)) => {
            let (name, after) = name.split_at(name.find([',', ':']).unwrap_or(name.len()));
            format!("{before}{}{}", path(&files.path(name)), after.replace('@', path(&files.path(""))))
        }
        None => word.into(),
    });
    let started = Instant::now();
    let mut command = Command::new(program("innkeeper-vmm"));
    let output = command
        .arg("run")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    let message = String::from_utf8_lossy(&output.stderr);
    if output.status.code() != Some(code) {
        return Err(format!("{}, not {code}: {message}", output.status));
    }
    // clap adds a hint to a usage error; ours are one line.
    if code == ERROR && message.trim_end().lines().count() != 1 {
        return Err(format!("not one line: {message}"));
    }
    if !words.split('|').any(|words| message.contains(words)) {
        return Err(format!("no {words:?} in: {message}"));
    }
    if started.elapsed() > Duration::from_secs(5) {
        return Err(format!("took {:?}", started.elapsed()));
    }
    Ok(())
}

/// A tap that another VMM has open.
#[test]
fn a_busy_tap_is_named() {
    let namespace = innkeeper_tests::network::Namespace::new().unwrap();
    namespace.run("ip tuntap add tap0 mode tap vnet_hdr").unwrap();
    let kernel = payload("control");
    let arguments = ["run", "--kernel", path(&kernel), "--memory", "16M", "--tap", "tap0"];
    let vmm_path = program("innkeeper-vmm");
    let mut first = namespace.command(Path::new(&vmm_path));
    let mut vmm = innkeeper_tests::Vmm::spawn(first.args(arguments)).unwrap();
    vmm.expect("ready", Duration::from_secs(20)).unwrap();
    let second =
        namespace.command(Path::new(&vmm_path)).args(arguments).stdin(Stdio::null()).output().unwrap();
    let message = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(ERROR), "{message}");
    assert_eq!(
        message.trim_end(),
        "innkeeper-vmm: cannot open tap tap0: it is busy: another process uses it"
    );
}
