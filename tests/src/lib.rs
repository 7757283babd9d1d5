//! The harness of the end-to-end tests: it runs the real `innkeeper-vmm` and talks to real guests.
//!
//! [`Vmm`] is a running VMM process whose console the test reads and writes; [`Shell`] adds the prompt of a
//! guest's shell. [`agent::Agent`] is a running daemon with directories of its own, which real clients and
//! [`ec2::Client`] talk to. [`network::Place`] is a network namespace to do things in; a guest of the stand-in VMM is
//! one ([`stand_in`]), where no stock kernel can run. Everything has a deadline, and whatever fails says where the log
//! is.

pub mod agent;
pub mod aws;
pub mod background;
pub mod controller;
pub mod ec2;
pub mod exchange;
pub mod guests;
pub mod layers;
pub mod mark;
pub mod network;
pub mod sequence;
pub mod stack;
pub mod stand_in;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

/// The path of a program of this workspace: beside the running test, or as a variable says, `INNKEEPER_VMM` for
/// `innkeeper-vmm`.
pub fn program(name: &str) -> PathBuf {
    let variable = name.trim_start_matches("innkeeper-").replace('-', "_").to_uppercase();
    if let Some(path) = std::env::var_os(format!("INNKEEPER_{variable}")) {
        return path.into();
    }
    build_directory().join(name)
}

/// Where cargo has put the programs: on disk, also in the lab.
pub fn build_directory() -> PathBuf {
    let mut directory = std::env::current_exe().expect("a test knows its own path");
    directory.pop();
    if directory.ends_with("deps") {
        directory.pop();
    }
    directory
}

/// The path of a bare-metal payload (`tests/payloads`).
pub fn payload(name: &str) -> PathBuf {
    Path::new(env!("PAYLOADS")).join(name)
}

/// Where `innkeeper-images` keeps what it builds.
pub fn cache() -> PathBuf {
    match (std::env::var_os("INNKEEPER_CACHE"), std::env::var_os("XDG_CACHE_HOME")) {
        (Some(cache), _) => PathBuf::from(cache),
        (None, Some(cache)) => Path::new(&cache).join("innkeeper"),
        (None, None) => Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".cache/innkeeper"),
    }
}

/// A file of an image in the cache, as `innkeeper-images build` has left it.
pub fn image(name: &str, file: &str) -> PathBuf {
    let path = cache().join("images").join(name).join("current").join(file);
    assert!(path.exists(), "{} is missing; scripts/test builds it", path.display());
    path
}

/// Everything a console has printed, shared with the thread that reads it.
#[derive(Default)]
struct Output {
    text: Mutex<(Vec<u8>, bool)>,
    grown: Condvar,
}

/// A VMM process.
pub struct Vmm {
    child: Child,
    /// Where console input goes.
    input: Option<File>,
    output: Arc<Output>,
    /// How much of the output earlier calls have used up.
    seen: usize,
    log: PathBuf,
}

impl Vmm {
    /// Runs `innkeeper-vmm run` with these arguments.
    pub fn run<S: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = S>) -> Result<Self> {
        let mut command = Command::new(program("innkeeper-vmm"));
        command.arg("run").args(arguments);
        Self::spawn(&mut command)
    }

    /// Runs any command as a VMM: what it prints on standard output is the console, and standard input too.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        let log = new_log()?;
        let errors = File::create(log.with_extension("stderr"))?;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .with_context(|| format!("cannot run {:?}", command.get_program()))?;
        let input = child.stdin.take().map(OwnedFd::from);
        let output = child.stdout.take().context("no standard output")?;
        Self::watch(child, input.map(File::from), OwnedFd::from(output).into(), log)
    }

    /// Takes over a process whose console is at the other ends of `input` and `output`.
    fn watch(child: Child, input: Option<File>, mut output: File, log: PathBuf) -> Result<Self> {
        let printed = Arc::new(Output::default());
        let (sink, mut file) = (Arc::clone(&printed), File::create(&log)?);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut buffer) {
                let _ = file.write_all(&buffer[..count]);
                sink.text.lock().unwrap().0.extend(&buffer[..count]);
                sink.grown.notify_all();
            }
            sink.text.lock().unwrap().1 = true;
            sink.grown.notify_all();
        });
        Ok(Self { child, input, output: printed, seen: 0, log })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the console prints `text`; returns what came before it, since the last call.
    pub fn expect(&mut self, text: &str, patience: Duration) -> Result<String> {
        self.wait_for(&[text], patience).map(|(_, before)| before)
    }

    /// Waits until the console prints one of `texts`; returns which.
    pub fn expect_any<'t>(&mut self, texts: &[&'t str], patience: Duration) -> Result<&'t str> {
        self.wait_for(texts, patience).map(|(text, _)| text)
    }

    fn wait_for<'t>(&mut self, texts: &[&'t str], patience: Duration) -> Result<(&'t str, String)> {
        let deadline = Instant::now() + patience;
        let mut state = self.output.text.lock().unwrap();
        loop {
            let new = &state.0[self.seen..];
            let find = |text: &str| new.windows(text.len()).position(|window| window == text.as_bytes());
            let first = texts.iter().filter_map(|text| Some((find(text)?, *text))).min();
            if let Some((at, text)) = first {
                let before = String::from_utf8_lossy(&new[..at]).into_owned();
                self.seen += at + text.len();
                return Ok((text, before));
            }
            let rest = deadline.saturating_duration_since(Instant::now());
            if state.1 || rest.is_zero() {
                let why = if state.1 { "the console closed" } else { "time ran out" };
                let tail = String::from_utf8_lossy(&new[new.len().saturating_sub(400)..]).into_owned();
                bail!(
                    "{why} waiting for {texts:?}; the last output was:\n{tail}\n(console log: {})\nthe VMM's threads, \
                     what they wait for, and their time in user and kernel mode: {}",
                    self.log.display(),
                    threads(self.child.id())
                );
            }
            state = self.output.grown.wait_timeout(state, rest).unwrap().0;
        }
    }

    /// All that the console still prints, and has printed since the last call, until it closes.
    pub fn rest(&mut self, patience: Duration) -> Result<String> {
        let deadline = Instant::now() + patience;
        let mut state = self.output.text.lock().unwrap();
        while !state.1 {
            let rest = deadline.saturating_duration_since(Instant::now());
            ensure!(!rest.is_zero(), "the console does not close (console log: {})", self.log.display());
            state = self.output.grown.wait_timeout(state, rest).unwrap().0;
        }
        let text = String::from_utf8_lossy(&state.0[self.seen..]).into_owned();
        self.seen = state.0.len();
        Ok(text)
    }

    /// Types on the console.
    pub fn send(&mut self, text: impl AsRef<[u8]>) -> Result<()> {
        let input = self.input.as_mut().context("the console's input is closed")?;
        Ok(input.write_all(text.as_ref())?)
    }

    /// Sends a signal to the VMM.
    pub fn signal(&self, signal: nix::sys::signal::Signal) -> Result<()> {
        Ok(nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.child.id() as i32), signal)?)
    }

    /// Waits for the VMM to end.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("the VMM did not end within {patience:?} (console log: {})", self.log.display());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits for the VMM to end, and expects this exit code.
    pub fn wait_for_code(&mut self, code: i32, patience: Duration) -> Result<()> {
        let status = self.wait(patience)?;
        if status.code() == Some(code) {
            return Ok(());
        }
        bail!(
            "the VMM ended with {status}, not {code}: {} (console log: {})",
            self.errors(),
            self.log.display()
        );
    }

    /// How many descriptors and how many threads it has.
    pub fn holds(&self) -> Result<[usize; 2]> {
        let count = |what| {
            Ok::<_, std::io::Error>(std::fs::read_dir(format!("/proc/{}/{what}", self.pid()))?.count())
        };
        Ok([count("fd")?, count("task")?])
    }

    /// Waits until it has as many descriptors and threads as `before`: a thread that has told that something is gone
    /// is itself there for a moment longer.
    pub fn expect_to_hold(&self, before: [usize; 2], patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let now = self.holds()?;
            if now == before {
                return Ok(());
            }
            if Instant::now() > deadline {
                let open = std::fs::read_dir(format!("/proc/{}/fd", self.pid()))?.flatten();
                let open: Vec<_> = open.flat_map(|entry| std::fs::read_link(entry.path())).collect();
                bail!("{now:?} descriptors and threads, and not {before:?}: {open:?}");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// What the VMM has said on standard error.
    pub fn errors(&self) -> String {
        std::fs::read_to_string(self.log.with_extension("stderr")).unwrap_or_default()
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("console log: {}", self.log.display());
        }
        // A test that failed leaves nobody behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the threads of a process are doing, as far as the kernel tells.
fn threads(pid: u32) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let read = |file| std::fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        let stat = read("stat");
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split(' ').collect();
        let times = [12, 13].map(|field| *fields.get(field).unwrap_or(&"?"));
        text += &format!("\n  {} {} {times:?}", read("comm").trim(), read("wchan").trim());
    }
    text
}

/// Where the console of another guest is logged.
fn new_log() -> Result<PathBuf> {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let directory = build_directory().join("logs");
    std::fs::create_dir_all(&directory)?;
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    Ok(directory.join(format!("{}-{}-{number}.log", test_name(), std::process::id())))
}

fn test_name() -> String {
    std::thread::current().name().unwrap_or("guest").replace("::", "-")
}

/// A shell on a guest's console.
pub struct Shell {
    /// The VMM that runs the guest.
    pub vmm: Vmm,
    prompt: &'static str,
}

impl Shell {
    /// A guest of the `micro` image, up and at its shell. `arguments` go to the VMM.
    pub fn micro(arguments: &[&str]) -> Result<Self> {
        let (kernel, initrd) = (image("micro", "vmlinux"), image("micro", "initrd.img"));
        let fixed = ["--kernel", path(&kernel), "--initrd", path(&initrd)];
        let vmm = Vmm::run(fixed.iter().chain(arguments))?;
        let mut shell = Self { vmm, prompt: "micro# " };
        shell.wait_for_boot()?;
        Ok(shell)
    }

    /// Waits until `micro` is at its prompt, at first or after a reboot.
    pub fn wait_for_boot(&mut self) -> Result<()> {
        self.vmm.expect("micro: ready", BOOT_PATIENCE)?;
        self.vmm.expect(self.prompt, BOOT_PATIENCE)?;
        Ok(())
    }

    /// A guest of the `micro` image, up and at its shell, with its controller and where others can connect.
    /// `prepare` may attach devices before the start.
    pub fn driven(
        machine: &controller::Machine,
        socket: &Path,
        prepare: impl FnOnce(&mut controller::Controller) -> Result<()>,
    ) -> Result<(Self, controller::Controller)> {
        use innkeeper_protocol::{Command, ConsoleKind};
        let (vmm, mut controller, streams) = controller::serve()?;
        controller.configure(machine, Some(&controller::listener(socket)?))?;
        prepare(&mut controller)?;
        controller.say(Command::Start)?;
        controller.attach_console(ConsoleKind::Serial, &streams, 0)?;
        controller.subscribe()?;
        let mut shell = Self { vmm, prompt: "micro# " };
        shell.wait_for_boot()?;
        Ok((shell, controller))
    }

    /// A shell at a prompt that `vmm` shows, or will show.
    pub fn new(vmm: Vmm, prompt: &'static str) -> Self {
        Self { vmm, prompt }
    }

    /// Runs `command`; returns what it prints. Fails if its exit status is not 0.
    pub fn run(&mut self, command: &str) -> Result<String> {
        self.run_for(command, COMMAND_PATIENCE)
    }

    /// As [`Shell::run`], for commands that take their time.
    pub fn run_for(&mut self, command: &str, patience: Duration) -> Result<String> {
        // The terminal echoes what is typed: the marks below are only whole in the output.
        self.vmm.send(format!("echo '<''<'; {command}; echo '>''>'$?'<'\n"))?;
        self.vmm.expect("<<", patience)?;
        let output = self.vmm.expect(">>", patience)?;
        let status = self.vmm.expect("<", patience)?;
        self.vmm.expect(self.prompt, patience)?;
        let output = output.replace('\r', "").trim().to_owned();
        match status.as_str() {
            "0" => Ok(output),
            status => Err(anyhow!(
                "{command:?} ended with status {status} in the guest:\n{output}\n(console log: {})",
                self.vmm.log.display()
            )),
        }
    }
}

/// A booting guest may take this long in an emulated lab.
const BOOT_PATIENCE: Duration = Duration::from_secs(240);
const COMMAND_PATIENCE: Duration = Duration::from_secs(60);

/// A path as text; ours are.
pub fn path(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

/// A tar file to be used as a disk, with our program for networks in it: `tar xf /dev/vda`, then `./netprobe`.
pub fn toolbox() -> Result<tempfile::NamedTempFile> {
    let file = tempfile::NamedTempFile::new()?;
    let netprobe = program("netprobe");
    let directory = netprobe.parent().context("a directory")?;
    let tar =
        Command::new("tar").arg("-cf").arg(file.path()).arg("-C").arg(directory).arg("netprobe").status()?;
    ensure!(tar.success(), "tar failed");
    Ok(file)
}

/// The option for a raw disk at `file`.
pub fn disk(file: &Path, more: &str) -> String {
    format!("path={},format=raw{more}", path(file))
}
