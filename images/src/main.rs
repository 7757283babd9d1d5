//! `innkeeper-images`: builds images from recipes, imports disks, and says what there is.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use innkeeper_images::boot::{self, BootSource, Origin};
use innkeeper_images::display::{BuildDisplay, ImportDisplay};
use innkeeper_images::import::{Checksum, DISK, Format, Import, MANIFEST, Manifest};
use innkeeper_images::kernel;
use innkeeper_images::recipe::{Cache, Recipes};

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
                let artefacts = cache.build(&recipes.get(&name)?, force, &mut BuildDisplay::default())?;
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
            let mut display = ImportDisplay::new(&target);
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
