//! `innkeeper-images`: builds images from recipes, imports disks, and says what there is.

mod import_progress;

use std::fs;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use import_progress::ImportProgress;
use indicatif::{ProgressBar, ProgressStyle};
use innkeeper_images::boot::{self, BootSource, Origin};
use innkeeper_images::import::{Checksum, DISK, Format, Import, MANIFEST, Manifest};
use innkeeper_images::kernel;
use innkeeper_images::recipe::{Cache, Progress, Recipes};

/// Builds images from recipes, imports disks, and says what there is.
///
/// Images that are built are kept in $INNKEEPER_CACHE, by default ~/.cache/innkeeper.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Subcommands,
}

#[derive(Subcommand)]
enum Subcommands {
    /// Build images, unless they are built, and print the directories of their artefacts
    Build {
        /// Build even what is built, with today's packages
        #[arg(long)]
        force: bool,
        /// Names of recipes (`list` shows them)
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// List all recipes and where their images are
    List,
    /// Print the directory of an image's artefacts; fails if it is not built
    Path {
        /// Name of the recipe
        name: String,
    },
    /// Make an image of a disk, and print its directory
    ///
    /// The directory gets the disk as a sparse file, disk.raw, and disk.manifest, which tells later whether the disk is
    /// still the same. What was interrupted goes on where it stopped when the same command is given again.
    Import {
        /// The disk's format; it is never guessed
        #[arg(long)]
        format: Format,
        /// What the file has to have, as its distribution published it: sha256: or sha512: and hexadecimal digits
        #[arg(long)]
        checksum: Option<Checksum>,
        /// The file with the disk
        source: PathBuf,
        /// The directory to be made
        target: PathBuf,
    },
    /// Compare an imported disk with its manifest
    Verify {
        /// The directory that `import` made
        image: PathBuf,
    },
    /// Say what a disk boots: the kernel, the initial RAM file systems and the command line
    BootSource {
        /// The disk, in raw format
        disk: PathBuf,
    },
    /// As the init of a guest: find what the first disk boots, and write it on the second
    #[command(hide = true)]
    ReadBootSource,
    /// Extract the uncompressed ELF kernel (vmlinux) from a bzImage (vmlinuz)
    ExtractKernel {
        /// The bzImage
        input: PathBuf,
        /// Where to write the ELF kernel
        output: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("innkeeper-images: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Subcommands) -> Result<()> {
    let recipes = Recipes::of_checkout();
    match command {
        Subcommands::Build { force, names } => {
            let cache = Cache::of_user()?;
            for name in names {
                let artefacts = cache.build(&recipes.get(&name)?, force, &mut Display::default())?;
                println!("{}", artefacts.display());
            }
        }
        Subcommands::List => {
            let cache = Cache::of_user()?;
            for name in recipes.names()? {
                match cache.find(&recipes.get(&name)?) {
                    Ok(artefacts) => println!("{name:12} {}", artefacts.display()),
                    Err(_) => println!("{name:12} not built"),
                }
            }
        }
        Subcommands::Path { name } => println!("{}", Cache::of_user()?.find(&recipes.get(&name)?)?.display()),
        Subcommands::Import { format, checksum, source, target } => {
            let mut display = ImportProgress::new(&target);
            let import = Import { source, format, target, checksum };
            let imported = import.run(&mut display);
            display.end(imported.as_ref().ok());
            imported?;
            println!("{}", import.target.display());
        }
        Subcommands::Verify { image } => {
            let manifest = Manifest::read(&image.join(MANIFEST))?;
            let path = image.join(DISK);
            let disk = fs::File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
            manifest.verify(&disk).with_context(|| format!("cannot trust {}", path.display()))?;
        }
        Subcommands::BootSource { disk } => {
            let file = fs::File::open(&disk).with_context(|| format!("cannot open {}", disk.display()))?;
            let source = boot::find(&file).with_context(|| format!("cannot boot {}", disk.display()))?;
            show(&source);
        }
        Subcommands::ReadBootSource => boot::reader::serve()?,
        Subcommands::ExtractKernel { input, output } => {
            let image = fs::read(&input).with_context(|| format!("cannot read {}", input.display()))?;
            let vmlinux = kernel::extract_vmlinux(&image)
                .with_context(|| format!("cannot extract the kernel of {}", input.display()))?;
            fs::write(&output, vmlinux).with_context(|| format!("cannot write {}", output.display()))?;
        }
    }
    Ok(())
}

/// Prints what a disk boots.
fn show(source: &BootSource) {
    let Origin { place, configuration, title, kernel, initrds } = &source.origin;
    println!("entry         {title}");
    println!("said by       {}", configuration.as_deref().unwrap_or("nothing: it is the highest version"));
    println!("on            {place}");
    println!("kernel        {kernel}");
    for initrd in initrds {
        println!("initrd        {initrd}");
    }
    println!("command line  {}", source.command_line);
}

/// Shows a build on standard error: a spinner to people, a line for each step to a log.
#[derive(Default)]
struct Display {
    image: String,
    begun: Option<Instant>,
    spinner: Option<ProgressBar>,
}

impl Progress for Display {
    fn begin(&mut self, image: &str) {
        self.image = image.into();
        self.begun = Some(Instant::now());
        if std::io::stderr().is_terminal() {
            let style = ProgressStyle::with_template("{spinner} {prefix}: {msg} ({elapsed})");
            let spinner = ProgressBar::new_spinner().with_prefix(self.image.clone());
            spinner.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            spinner.enable_steady_tick(Duration::from_millis(100));
            self.spinner = Some(spinner);
        }
    }

    fn step(&mut self, step: &str) {
        match &self.spinner {
            Some(spinner) => spinner.set_message(step.to_owned()),
            None => eprintln!("{}: {step}", self.image),
        }
    }

    fn end(&mut self) {
        if let Some(spinner) = self.spinner.take() {
            spinner.finish_and_clear();
        }
        let seconds = self.begun.map_or(0.0, |begun| begun.elapsed().as_secs_f64());
        eprintln!("{}: {seconds:.0} s", self.image);
    }
}
