//! A running daemon, `innkeeper serve`, with directories and a port of its own, and the clients that talk to it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{ec2, new_log, path, payload, program};

/// The region of all daemons here.
pub const REGION: &str = "us-east-1";
/// An instance type that EC2 does not have: 1 CPU and 64 MiB.
pub const TINY: &str = "lab.tiny";
/// Like [`TINY`], with two disks of 1 GB in the instance store.
pub const STORED: &str = "lab.stored";
/// Not every payload knows the power button: a configuration for what waits for it is not to wait long.
pub const IMPATIENT: &str = "stop-timeout = 1\nreboot-timeout = 1\ncpu-overcommit = 100.0";
/// A daemon may take this long to be ready, or to end; in an emulated lab too.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the daemon may copy an image.
const IMAGE_PATIENCE: Duration = Duration::from_secs(300);

/// A daemon. When it is dropped, it ends, and every VMM that it has left.
pub struct Agent {
    daemon: Option<Child>,
    directory: tempfile::TempDir,
    endpoint: String,
    log: PathBuf,
    /// The program that is its VMM.
    vmm: PathBuf,
}

/// What an image is made of, and what its guests print when they are up.
#[derive(Clone, Debug)]
pub struct Template {
    /// The directory.
    pub location: PathBuf,
    /// What a guest prints.
    pub banner: &'static str,
}

impl Agent {
    /// Starts a daemon over empty directories that knows [`TINY`] and [`STORED`]. `more` are further lines of its
    /// configuration; it listens on the loopback unless they say otherwise.
    pub fn start(more: &str) -> Result<Self> {
        Self::start_on(&program("innkeeper-vmm"), more)
    }

    /// As [`Agent::start`], with another program as its VMM, such as [`crate::stand_in::vmm`].
    pub fn start_on(vmm: &Path, more: &str) -> Result<Self> {
        let own =
            |name, store| format!("[[instance-types]]\nname = \"{name}\"\nvcpus = 1\nmemory = 64\n{store}\n");
        let (tiny, stored) = (own(TINY, ""), own(STORED, "instance-store = { disks = 2, size = 1 }"));
        Self::start_with(vmm, &format!("{more}\n{tiny}{stored}"))
    }

    /// As [`Agent::start`], with a daemon that knows EC2's types only.
    pub fn with_types_of_ec2(more: &str) -> Result<Self> {
        Self::start_with(&program("innkeeper-vmm"), more)
    }

    fn start_with(vmm: &Path, more: &str) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("innkeeper-agent-").tempdir()?;
        let listens = more.lines().any(|line| line.starts_with("listen = "));
        let listen = if listens { "" } else { "listen = \"127.0.0.1:0\"\n" };
        let configuration = format!(
            "{listen}region = \"{REGION}\"\nstate-directory = \"{0}/state\"\n\
             run-directory = \"{0}/run\"\nboot-id-file = \"{0}/boot-id\"\nimage-directories = [\"{0}/import\", {cache:?}]\nvmm = {vmm:?}\n\
             public-addresses = [\"{pool}\"]\n{more}",
            path(directory.path()),
            cache = crate::cache().join("images"),
            pool = pool(),
        );
        std::fs::create_dir(directory.path().join("import"))?;
        std::fs::write(directory.path().join("innkeeper.toml"), configuration)?;
        std::fs::write(directory.path().join("boot-id"), "boot 1\n")?;
        let log = new_log()?.with_extension("agent");
        let mut agent = Self { daemon: None, directory, endpoint: String::new(), log, vmm: vmm.to_owned() };
        agent.resume()?;
        Ok(agent)
    }

    /// Starts the daemon again after [`Agent::stop`] or [`Agent::kill`], over what the last one has left.
    pub fn resume(&mut self) -> Result<()> {
        self.resume_with(&[])
    }

    /// As [`Agent::resume`], with a daemon that kills itself at a place: `NAME`, or `NAME:N` for the Nth time there.
    pub fn resume_until(&mut self, place: &str) -> Result<()> {
        self.resume_with(&[("INNKEEPER_FAILPOINT", place)])
    }

    fn resume_with(&mut self, environment: &[(&str, &str)]) -> Result<()> {
        ensure!(self.daemon.is_none(), "the daemon runs already");
        let log = File::options().create(true).append(true).open(&self.log)?;
        let notices = self.directory.path().join("notify");
        let _ = std::fs::remove_file(&notices);
        let ready = UnixDatagram::bind(&notices)?;
        let mut command = self.innkeeper();
        let daemon = command
            .arg("serve")
            .arg("--config")
            .arg(self.directory.path().join("innkeeper.toml"))
            .env("NOTIFY_SOCKET", &notices)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot run innkeeper")?;
        self.daemon = Some(daemon);
        self.wait_until_ready(&ready)?;
        self.endpoint = self.credential("endpoint_url")?;
        Ok(())
    }

    /// The program `innkeeper`, with nothing of our environment that it would take for its configuration or its credentials.
    fn innkeeper(&self) -> Command {
        let mut command = Command::new(program("innkeeper"));
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("INNKEEPER_") || name.starts_with("AWS_")) {
                command.env_remove(name);
            }
        }
        if std::env::var_os("RUST_LOG").is_none() {
            command.env("RUST_LOG", "innkeeper=debug");
        }
        command
    }

    /// Waits until the daemon says that it is ready, as it would to systemd.
    fn wait_until_ready(&mut self, notices: &UnixDatagram) -> Result<()> {
        notices.set_read_timeout(Some(Duration::from_millis(50)))?;
        let deadline = Instant::now() + PATIENCE;
        let mut notice = [0; 4096];
        loop {
            if let Ok(length) = notices.recv(&mut notice)
                && String::from_utf8_lossy(&notice[..length]).lines().any(|line| line == "READY=1")
            {
                return Ok(());
            }
            let daemon = self.daemon.as_mut().context("the daemon does not run")?;
            if let Some(status) = daemon.try_wait()? {
                self.daemon = None;
                bail!("the daemon ended with {status}: {}", self.last_words());
            }
            ensure!(Instant::now() < deadline, "the daemon is not ready: {}", self.last_words());
        }
    }

    /// Asks the daemon to end, and waits until it has. Its guests go on.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.end(Signal::SIGTERM)
    }

    /// Kills the daemon. Its guests go on.
    pub fn kill(&mut self) -> Result<()> {
        self.end(Signal::SIGKILL).map(drop)
    }

    /// Reboots the host under a daemon that does not run: no VMM is left, nothing of what was on a tmpfs, and the kernel
    /// calls itself another boot.
    pub fn reboot_host(&self) -> Result<()> {
        ensure!(self.daemon.is_none(), "the daemon runs");
        for pid in self.vmms()? {
            kill(Pid::from_raw(pid as i32), Signal::SIGKILL)?;
        }
        self.wait_for_vmms(0)?;
        self.unmount()?;
        match std::fs::remove_dir_all(self.run_directory()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        self.rename_boot()
    }

    /// Lets the kernel call itself another boot.
    pub fn rename_boot(&self) -> Result<()> {
        let file = self.directory.path().join("boot-id");
        let before = std::fs::read_to_string(&file)?;
        let number: u64 = before.trim().trim_start_matches("boot ").parse()?;
        std::fs::write(&file, format!("boot {}\n", number + 1))?;
        Ok(())
    }

    /// The instance stores that are mounted.
    pub fn stores(&self) -> Result<Vec<PathBuf>> {
        self.mounted("stores")
    }

    /// The VPCs that have a network, by where their namespaces are mounted.
    pub fn networks(&self) -> Result<Vec<PathBuf>> {
        self.mounted("vpcs")
    }

    fn mounted(&self, kind: &str) -> Result<Vec<PathBuf>> {
        let mounts = std::fs::read_to_string("/proc/self/mounts")?;
        let places = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
        let directory = self.run_directory().join(kind);
        Ok(places.filter(|place| place.starts_with(&directory)).collect())
    }

    /// Takes away the daemon's rules on the host, if there are any.
    fn forget_rules(&self) -> Result<()> {
        let listed = Command::new("nft").args(["-a", "list", "tables", "inet"]).output()?;
        for line in String::from_utf8(listed.stdout)?.lines() {
            let name = line.split(' ').nth(2).unwrap_or_default();
            let table = Command::new("nft").args(["list", "table", "inet", name]).output()?;
            if String::from_utf8(table.stdout)?.contains(path(&self.run_directory())) {
                Command::new("nft").args(["delete", "table", "inet", name]).status()?;
            }
        }
        Ok(())
    }

    /// Takes away all that is mounted, as a reboot of the host does.
    fn unmount(&self) -> Result<()> {
        for place in self.stores()?.iter().chain(&self.networks()?) {
            umount2(place, MntFlags::MNT_DETACH)?;
        }
        Ok(())
    }

    /// A disk of an instance's store, as the host sees it.
    pub fn store_disk(&self, instance: &str, name: &str) -> PathBuf {
        self.run_directory().join("stores").join(instance).join(name)
    }

    fn end(&mut self, signal: Signal) -> Result<ExitStatus> {
        let mut daemon = self.daemon.take().context("the daemon does not run")?;
        kill(Pid::from_raw(daemon.id() as i32), signal)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = daemon.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                let _ = daemon.kill();
                let _ = daemon.wait();
                bail!("the daemon did not end within {PATIENCE:?}: {}", self.last_words());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The places at which a daemon can be made to kill itself.
    pub fn failpoints(&self) -> Result<Vec<String>> {
        let output = self.innkeeper().args(["debug", "failpoints"]).output()?;
        Ok(String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect())
    }

    /// Whether the daemon has ended by itself since this was asked last.
    pub fn has_died(&mut self) -> Result<bool> {
        let Some(daemon) = &mut self.daemon else { return Ok(false) };
        let has_died = daemon.try_wait()?.is_some();
        if has_died {
            self.daemon = None;
        }
        Ok(has_died)
    }

    /// The daemon's process id, if it runs.
    pub fn pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Child::id)
    }

    /// Reads events as they come, with `innkeeper events`, also from the daemons after this one.
    pub fn follow_events(&self) -> Result<Events> {
        let mut reader = self
            .innkeeper()
            .args(["events", "--follow", "--output", "json", "--config"])
            .arg(self.directory.path().join("innkeeper.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run innkeeper")?;
        let lines = BufReader::new(reader.stdout.take().context("a pipe")?).lines();
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Ok(Events { reader, receiver })
    }

    /// Where the daemon listens.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The files of layers that there are.
    pub fn layer_files(&self) -> Result<BTreeSet<String>> {
        let entries = match std::fs::read_dir(self.state_directory().join("layers")) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
            Err(error) => return Err(error.into()),
        };
        Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
    }

    /// Waits until there are the files of so many layers.
    pub fn wait_for_layers(&self, count: usize) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let files = self.layer_files()?;
            if files.len() == 2 * count {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "{count} layers are not these files: {files:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The directory of what survives a reboot of the host.
    pub fn state_directory(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// The directory of what does not.
    pub fn run_directory(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    /// What an image of a bare payload is made of.
    pub fn payload(&self, name: &'static str) -> Result<Template> {
        let location = self.directory.path().join("import").join(name);
        if !location.exists() {
            std::fs::create_dir(&location)?;
            std::fs::copy(payload(name), location.join("vmlinux"))?;
            std::fs::set_permissions(location.join("vmlinux"), PermissionsExt::from_mode(0o644))?;
        }
        Ok(Template { location, banner: "ready" })
    }

    /// What the `micro` image is made of: with its root volume, without which its guests have no ssh server.
    pub fn micro(&self) -> Result<Template> {
        let kernel = crate::image("micro", "vmlinux");
        let location = kernel.parent().context("a directory")?.to_owned();
        Ok(Template { location, banner: "micro: ready" })
    }

    /// Registers an image, and returns its id.
    pub fn register(&self, name: &str, template: &Template) -> Result<String> {
        self.register_with(name, template, &[])
    }

    /// Registers an image whose instances have their root device in the instance store, and returns its id.
    pub fn register_in_store(&self, name: &str, template: &Template) -> Result<String> {
        let root = ["RootDeviceName", "BlockDeviceMapping.1.DeviceName"].map(|name| (name, "/dev/sda1"));
        let parameters = [&root[..], &[("BlockDeviceMapping.1.VirtualName", "ami")]].concat();
        self.register_with(name, template, &parameters)
    }

    fn register_with(&self, name: &str, template: &Template, more: &[(&str, &str)]) -> Result<String> {
        let parameters = [("Name", name), ("ImageLocation", path(&template.location))];
        let client = self.client()?;
        let answer = client.ask("RegisterImage", &[&parameters, more].concat())?;
        let image = ec2::texts(&answer, "imageId").pop().with_context(|| format!("no image id: {answer}"))?;
        // It is pending if the host is slow.
        let deadline = Instant::now() + IMAGE_PATIENCE;
        loop {
            let answer = client.ask("DescribeImages", &[("ImageId.1", &image)])?;
            match ec2::texts(&answer, "imageState").first().map(String::as_str) {
                Some("available") => return Ok(image),
                Some("pending") if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                _ => bail!("the image cannot be made: {answer}"),
            }
        }
    }

    /// A client of our own.
    pub fn client(&self) -> Result<ec2::Client> {
        self.client_at(&self.endpoint)
    }

    /// A client of our own that looks for the API elsewhere, such as a guest does.
    pub fn client_at(&self, endpoint: &str) -> Result<ec2::Client> {
        let (key, secret) =
            (self.credential("aws_access_key_id")?, self.credential("aws_secret_access_key")?);
        Ok(ec2::Client::new(endpoint, REGION, &key, &secret))
    }

    /// A line of the file with the credentials.
    fn credential(&self, name: &str) -> Result<String> {
        let path = self.credentials();
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let values = text.lines().filter_map(|line| line.split_once('='));
        let value =
            values.map(|(found, value)| (found.trim(), value.trim())).find(|(found, _)| *found == name);
        Ok(value.with_context(|| format!("{} has no {name}", path.display()))?.1.to_owned())
    }

    /// The file with the credentials, in the form that all clients of AWS read.
    pub fn credentials(&self) -> PathBuf {
        self.state_directory().join("credentials")
    }

    /// Runs a client command of `innkeeper`, and returns what it prints.
    pub fn command(&self, arguments: &[&str]) -> Result<String> {
        let output = self.try_command(arguments)?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "innkeeper {}: {errors}{}", arguments.join(" "), self.last_words());
        Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
    }

    /// As [`Agent::command`], for what may fail.
    pub fn try_command(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.innkeeper();
        // What follows a -- is somebody else's.
        let own = arguments.iter().position(|argument| *argument == "--").unwrap_or(arguments.len());
        command.args(&arguments[..own]).arg("--config").arg(self.directory.path().join("innkeeper.toml"));
        command.args(&arguments[own..]);
        command.stdin(Stdio::null()).output().context("cannot run innkeeper")
    }

    /// Runs the real `aws` with these arguments after `--endpoint-url`, and returns what it prints.
    pub fn aws(&self, arguments: &[&str]) -> Result<String> {
        let output = self.try_aws(arguments)?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "aws {}: {errors}{}", arguments.join(" "), self.last_words());
        Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
    }

    /// As [`Agent::aws`], for what may fail.
    pub fn try_aws(&self, arguments: &[&str]) -> Result<Output> {
        let mut aws = Command::new(client_program("aws")?);
        self.with_environment(&mut aws)
            .args(["--endpoint-url", &self.endpoint])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .context("cannot run aws")
    }

    /// Makes a role for instances that may do what an action's pattern says, and a profile of the same name.
    pub fn make_role(&self, name: &str, action: &str) -> Result<()> {
        const TRUST: &str = r#"{"Statement":{"Effect":"Allow","Principal":{"Service":"ec2.amazonaws.com"},"Action":"sts:AssumeRole"}}"#;
        let rights = format!(r#"{{"Statement":{{"Effect":"Allow","Action":"{action}","Resource":"*"}}}}"#);
        for words in [
            &["create-role", "--role-name", name, "--assume-role-policy-document", TRUST][..],
            &[
                "put-role-policy",
                "--role-name",
                name,
                "--policy-name",
                "rights",
                "--policy-document",
                &rights,
            ],
            &["create-instance-profile", "--instance-profile-name", name],
            &["add-role-to-instance-profile", "--instance-profile-name", name, "--role-name", name],
        ] {
            self.aws(&[&["iam"], words].concat())?;
        }
        Ok(())
    }

    /// Runs one of the suites in `tests/clients` with an image that can be launched. What it prints is printed.
    pub fn run_suite(&self, name: &str, image: &str, template: &Template) -> Result<()> {
        let mut suite = suite(name)?;
        self.with_environment(&mut suite)
            .env("AWS_ENDPOINT_URL", &self.endpoint)
            .env("INNKEEPER_TEST_IMAGE", image)
            .env("INNKEEPER_TEST_LOCATION", &template.location)
            .env("INNKEEPER_TEST_BANNER", template.banner);
        run_suite(&mut suite).with_context(|| format!("the daemon's log: {}", self.log.display()))
    }

    /// Only this daemon, and nothing of the user's own configuration.
    fn with_environment<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("AWS_") || name.starts_with("PYTHON")) {
                command.env_remove(name);
            }
        }
        command
            .env("AWS_SHARED_CREDENTIALS_FILE", self.credentials())
            .env("AWS_CONFIG_FILE", "/dev/null")
            .env("AWS_DEFAULT_REGION", REGION)
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_PAGER", "")
    }

    /// The VMMs that this daemon, or one before it, has started: those that have something of its directories open.
    pub fn vmms(&self) -> Result<Vec<u32>> {
        let sockets = self.sockets()?;
        // It may have been built anew since, and is called deleted then.
        let vmm = format!("/{}", path(self.vmm.file_name().context("a program")?.as_ref()));
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            // A process may end while it is looked at.
            let Ok(program) = std::fs::read_link(entry.path().join("exe")) else { continue };
            if !program.to_string_lossy().contains(&vmm) {
                continue;
            }
            let open = std::fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten();
            let is_ours =
                |target: PathBuf| target.starts_with(self.directory.path()) || sockets.contains(&target);
            if open.filter_map(|file| std::fs::read_link(file.path()).ok()).any(is_ours) {
                found.push(pid);
            }
        }
        Ok(found)
    }

    /// The process of an instance's VMM, as the daemon has noted it.
    pub fn vmm_of(&self, instance: &str) -> Result<u32> {
        let note = self.run_directory().join("instances").join(instance).join("process");
        let text = std::fs::read_to_string(&note)
            .with_context(|| format!("{instance} has no VMM: cannot read {}", note.display()))?;
        let pid = text.split_whitespace().next().context("an empty note of a VMM")?;
        Ok(pid.parse()?)
    }

    /// The sockets below our directory, as /proc shows them among open files.
    fn sockets(&self) -> Result<Vec<PathBuf>> {
        let table = std::fs::read_to_string("/proc/net/unix")?;
        let ours = path(self.directory.path());
        let fields = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let ours = fields.filter(|fields| fields.get(7).is_some_and(|name| name.starts_with(ours)));
        Ok(ours.filter_map(|fields| Some(format!("socket:[{}]", fields.get(6)?).into())).collect())
    }

    /// Waits until there are so many VMMs.
    pub fn wait_for_vmms(&self, count: usize) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let vmms = self.vmms()?;
            if vmms.len() == count {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "VMMs {vmms:?} where {count} should be: {}",
                self.last_words()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The end of the daemon's log, and where the rest is.
    pub fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let last = lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n");
        format!("\n{last}\n(the daemon's log: {})", self.log.display())
    }
}

/// Public addresses that no other daemon of the tests has at the same time, of those that are reserved for measurements.
fn pool() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number =
        std::process::id().wrapping_mul(7).wrapping_add(NUMBER.fetch_add(1, Ordering::Relaxed)) % 512;
    format!("198.{}.{}.0/24", 18 + number / 256, number % 256)
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the daemon's log: {}", self.log.display());
        }
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        for pid in self.vmms().unwrap_or_default() {
            let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
        }
        let _ = self.unmount();
        let _ = self.forget_rules();
    }
}

/// A reader of events. When it is dropped, it ends.
pub struct Events {
    reader: Child,
    receiver: Receiver<String>,
}

impl Events {
    /// The next event.
    pub fn hear(&mut self) -> Result<serde_json::Value> {
        let line = self.receiver.recv_timeout(PATIENCE).context("no event has come")?;
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.reader.kill();
        let _ = self.reader.wait();
    }
}

/// One of the suites in `tests/clients`.
pub fn suite(name: &str) -> Result<Command> {
    let mut command = Command::new(client_program("python3")?);
    command
        .args(["-m", "unittest", "-v", &format!("clients.{name}")])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("PYTHONDONTWRITEBYTECODE", "1");
    Ok(command)
}

/// Runs a suite. What it prints is printed; what has failed is in the error.
pub fn run_suite(suite: &mut Command) -> Result<()> {
    let output = suite.stdin(Stdio::null()).output().context("cannot run python3")?;
    print!("{}", String::from_utf8_lossy(&output.stdout));
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A program of the clients that scripts/setup has installed.
pub fn client_program(name: &str) -> Result<PathBuf> {
    let found = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/clients/bin").join(name);
    ensure!(found.exists(), "{} is missing; scripts/setup installs it", found.display());
    Ok(found)
}
