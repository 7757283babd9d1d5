//! Images: list, register, remove.

use std::path::PathBuf;

use anyhow::Context;

use crate::cli::answer::text;
use crate::cli::client::Parameters;
use crate::cli::global::Global;
use crate::cli::names;
use crate::cli::output::{View, age};
use crate::cli::tags::tags;

/// The root device of images for which it matters.
const ROOT_DEVICE: &str = "/dev/xvda";

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

/// What to do with images.
#[derive(Debug, clap::Subcommand)]
pub enum Images {
    /// List images
    List,
    /// Make an image of a directory with a disk, or a kernel and an initial RAM disk
    Register {
        /// The directory, one of those that the agent is configured to take images from, or inside one of them
        directory: PathBuf,
        /// The image's name
        #[arg(long)]
        name: String,
        /// The image's id, such as ami-0123456789abcdef0, instead of a random one
        #[arg(long, value_name = "ID")]
        id: Option<String>,
        /// The kernel's command line
        #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
        command_line: Option<String>,
        /// Its instances have their root device in the instance store, and cannot be stopped
        #[arg(long)]
        instance_store_root: bool,
        /// What it is, for people
        #[arg(long, value_name = "TEXT")]
        description: Option<String>,
        /// A tag
        #[arg(long, value_name = "KEY=VALUE")]
        tag: Vec<String>,
    },
    /// Deregister images; instances that were launched from them stay
    #[command(visible_alias = "deregister")]
    Remove {
        /// Ids or names of images
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
    },
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
            Self::Register { directory, name, id, command_line, instance_store_root, description, tag } => {
                let tags = tags(None, &tag)?;
                // The agent has another working directory.
                let directory = std::fs::canonicalize(&directory)
                    .with_context(|| format!("cannot find the directory {}", directory.display()))?;
                let location = directory.to_str().context("the directory's name is not UTF-8")?;
                let in_store = |value| instance_store_root.then_some(value);
                let parameters = Parameters::default()
                    .with("ImageLocation", location)
                    .with_some("RootDeviceName", in_store(ROOT_DEVICE))
                    .with_some("BlockDeviceMapping.1.DeviceName", in_store(ROOT_DEVICE))
                    .with_some("BlockDeviceMapping.1.VirtualName", in_store("ami"))
                    .with("Name", name)
                    .with("Architecture", "x86_64")
                    .with_some("Description", description)
                    // These are not EC2's, but the agent's.
                    .with_some("ImageId", id)
                    .with_some("KernelCommandLine", command_line)
                    .with_tags("image", &tags);
                let answer = client.call("RegisterImage", parameters)?;
                global.done("imageId", &[text(&answer, "imageId").to_owned()])?;
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
