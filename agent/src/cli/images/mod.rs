//! Images: list, import, build, register, create, remove.

mod sources;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use innkeeper_images::import::{Checksum, Format};

use crate::cli::answer::text;
use crate::cli::client::{Client, Parameters};
use crate::cli::global::Global;
use crate::cli::names;
use crate::cli::output::{View, age};
use crate::cli::tags::tags;
use crate::cli::wait::{Wait, Way};
use sources::Source;

/// The root device of images for which it matters.
const ROOT_DEVICE: &str = "/dev/xvda";

/// How long the agent may take to copy an image's files, in seconds: a day.
const COPYING: u64 = 24 * 60 * 60;

const IMAGES: View = View {
    id: "imageId",
    columns: &[
        ("ID", |each, _| text(each, "imageId").into()),
        ("NAME", |each, _| text(each, "name").into()),
        ("STATE", |each, _| text(each, "imageState").into()),
        ("DESCRIPTION", |each, _| text(each, "description").into()),
        ("REGISTERED", |each, now| age(text(each, "creationDate"), now)),
    ],
};

const AVAILABLE: Way = Way {
    kind: "image",
    wanted: "available",
    action: "DescribeImages",
    parameter: "ImageId",
    list: "imagesSet",
    id: "imageId",
    state: "imageState",
    done: "available",
    comes: "pending",
    reason: "stateReason.message",
};

/// What to do with images.
#[derive(Debug, clap::Subcommand)]
pub enum Images {
    /// List images
    List,
    /// Make an image of a disk
    ///
    /// What was interrupted goes on where it stopped when the same command is given again. The disk has to boot by itself.
    Import {
        /// The file with the disk
        file: PathBuf,
        /// The disk's format; it is never guessed
        #[arg(long)]
        format: Format,
        /// What the file has to have, as its distribution published it: sha256: or sha512: and hexadecimal digits
        #[arg(long)]
        checksum: Option<Checksum>,
        #[command(flatten)]
        wanted: Wanted,
    },
    /// Build an image by one of the recipes of this source tree
    Build {
        /// The recipe, such as micro or debian-12
        recipe: String,
        #[command(flatten)]
        wanted: Wanted,
    },
    /// Make an image of a directory with a disk, or a kernel and an initial RAM disk
    Register {
        /// The directory, one of those that the agent is configured to take images from, or inside one of them
        directory: PathBuf,
        /// The kernel's command line
        #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
        command_line: Option<String>,
        #[command(flatten)]
        wanted: Wanted,
    },
    /// Make an image of an instance, as it is now
    ///
    /// An instance that is running is rebooted, so that its disks are as after a shutdown.
    Create {
        /// Id or name of an instance
        instance: String,
        /// The image's name
        #[arg(long)]
        name: String,
        /// What it is, for people
        #[arg(long, value_name = "TEXT")]
        description: Option<String>,
        /// Do not reboot the instance: the image is what a power failure would leave
        #[arg(long)]
        no_reboot: bool,
        /// A tag
        #[arg(long, value_name = "KEY=VALUE")]
        tag: Vec<String>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Deregister images; instances that were launched from them stay
    #[command(visible_alias = "deregister")]
    Remove {
        /// Ids or names of images
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
    },
}

/// What an image is to be.
#[derive(Debug, clap::Args)]
pub struct Wanted {
    /// The image's name
    #[arg(long)]
    name: String,
    /// The image's id, such as ami-0123456789abcdef0, instead of a random one
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Its instances have their root device in the instance store, and cannot be stopped
    #[arg(long)]
    instance_store_root: bool,
    /// What it is, for people
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// A tag
    #[arg(long, value_name = "KEY=VALUE")]
    tag: Vec<String>,
}

impl Wanted {
    /// Makes sure that no image has the name, before anything is done that takes long.
    fn check_free(&self, client: &Client) -> anyhow::Result<()> {
        tags(None, &self.tag)?;
        let named = [("name".to_owned(), self.name.clone())];
        let parameters = Parameters::default().with("Owner.1", "self").with_filters(&named);
        let found = client.describe("DescribeImages", parameters, "imagesSet")?;
        match found.first() {
            None => Ok(()),
            Some(image) => bail!("the image {} has the name {}", text(image, "imageId"), self.name),
        }
    }

    /// Registers what was made, and removes it: the agent has a copy.
    fn register_source(&self, client: &Client, source: Source) -> anyhow::Result<String> {
        let directory = source.directory().to_owned();
        let id = self.register(client, &directory, None).with_context(|| {
            let directory = directory.display();
            format!("the image is in {directory} (`innkeeper image register` tries again), but")
        })?;
        source.remove()?;
        Ok(id)
    }

    /// Has the agent make an image of a directory, waits until it is there, and returns its id.
    fn register(
        &self,
        client: &Client,
        directory: &Path,
        command_line: Option<String>,
    ) -> anyhow::Result<String> {
        let tags = tags(None, &self.tag)?;
        let location = directory.to_str().context("the directory's name is not UTF-8")?;
        let in_store = |value| self.instance_store_root.then_some(value);
        let parameters = Parameters::default()
            .with("ImageLocation", location)
            .with_some("RootDeviceName", in_store(ROOT_DEVICE))
            .with_some("BlockDeviceMapping.1.DeviceName", in_store(ROOT_DEVICE))
            .with_some("BlockDeviceMapping.1.VirtualName", in_store("ami"))
            .with("Name", self.name.as_str())
            .with("Architecture", "x86_64")
            .with_some("Description", self.description.as_deref())
            // These are not EC2's, but the agent's.
            .with_some("ImageId", self.id.as_deref())
            .with_some("KernelCommandLine", command_line)
            .with_tags("image", &tags);
        let answer = client.call("RegisterImage", parameters)?;
        let id = text(&answer, "imageId").to_owned();
        // It is there already, unless the disk is large.
        Wait { wait: true, timeout: COPYING }.until_there(client, &AVAILABLE, std::slice::from_ref(&id))?;
        Ok(id)
    }
}

impl Images {
    /// Does it; returns the exit status.
    pub fn execute(self, global: &Global) -> anyhow::Result<u8> {
        let client = global.client()?;
        match self {
            Self::List => {
                let found = client.describe("DescribeImages", Parameters::default(), "imagesSet")?;
                global.show(&IMAGES, &found)?;
            }
            Self::Import { file, format, checksum, wanted } => {
                wanted.check_free(&client)?;
                let source = Source::import(global, &wanted.name, file, format, checksum)?;
                global.done("imageId", &[wanted.register_source(&client, source)?])?;
            }
            Self::Build { recipe, wanted } => {
                wanted.check_free(&client)?;
                let source = Source::build(global, &wanted.name, &recipe)?;
                global.done("imageId", &[wanted.register_source(&client, source)?])?;
            }
            Self::Register { directory, command_line, wanted } => {
                // The agent has another working directory.
                let directory = std::fs::canonicalize(&directory)
                    .with_context(|| format!("cannot find the directory {}", directory.display()))?;
                global.done("imageId", &[wanted.register(&client, &directory, command_line)?])?;
            }
            Self::Create { instance, name, description, no_reboot, tag, wait } => {
                let tags = tags(None, &tag)?;
                let parameters = Parameters::default()
                    .with("InstanceId", names::instance(&client, &instance)?)
                    .with("Name", name)
                    .with_some("Description", description)
                    .with_some("NoReboot", no_reboot.then_some("true"))
                    .with_tags("image", &tags);
                let made = client.call("CreateImage", parameters)?;
                let ids = [text(&made, "imageId").to_owned()];
                global.done("imageId", &ids)?;
                wait.until_there(&client, &AVAILABLE, &ids)?;
            }
            Self::Remove { images } => {
                let mut removed = Vec::new();
                for image in images {
                    let id = names::exact_image(&client, &image)?;
                    client.call("DeregisterImage", Parameters::default().with("ImageId", id.as_str()))?;
                    removed.push(id);
                }
                global.done("imageId", &removed)?;
            }
        }
        Ok(0)
    }
}
