//! Which resource a person means: by its id, or by its name.

use anyhow::{Context, bail};
use serde_json::Value;

use crate::cli::answer::{tag, text};
use crate::cli::client::{Client, Parameters};

/// A resource that can be meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its id.
    pub id: String,
    /// Its name; nobody has to give one.
    pub name: String,
}

/// A kind of resource, as far as names go.
struct Kind {
    word: &'static str,
    prefix: &'static str,
    /// The command that lists them.
    listed: &'static str,
}

const INSTANCE: Kind = Kind { word: "instance", prefix: "i-", listed: "innkeeper ps --all" };
const IMAGE: Kind = Kind { word: "image", prefix: "ami-", listed: "innkeeper image list" };
const SNAPSHOT: Kind = Kind { word: "snapshot", prefix: "snap-", listed: "innkeeper snapshot list" };
const VOLUME: Kind = Kind { word: "volume", prefix: "vol-", listed: "innkeeper volume list" };

/// Whether a text can only be an id of EC2's, with the prefix of its kind.
fn is_id(text: &str, prefix: &str) -> bool {
    let digits = text.strip_prefix(prefix).unwrap_or_default();
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The one candidate that is meant: that with this name, else the only one whose name begins with it.
fn choose(kind: &Kind, wanted: &str, candidates: &[Candidate], abbreviated: bool) -> anyhow::Result<String> {
    let Kind { word, listed, .. } = kind;
    let mut found = named(wanted, candidates);
    if found.is_empty() && abbreviated {
        found = beginning(wanted, candidates);
    }
    only(kind, wanted, &found)?
        .with_context(|| format!("no {word} is named {wanted:?}: `{listed}` lists what there is"))
}

fn named<'c>(wanted: &str, candidates: &'c [Candidate]) -> Vec<&'c Candidate> {
    candidates.iter().filter(|each| each.name == wanted).collect()
}

fn beginning<'c>(wanted: &str, candidates: &'c [Candidate]) -> Vec<&'c Candidate> {
    candidates.iter().filter(|each| !wanted.is_empty() && each.name.starts_with(wanted)).collect()
}

/// The only one of what was found, if anything was.
fn only(kind: &Kind, wanted: &str, found: &[&Candidate]) -> anyhow::Result<Option<String>> {
    match found {
        [] => Ok(None),
        [one] => Ok(Some(one.id.clone())),
        many => {
            let many: Vec<_> = many.iter().map(|each| format!("{} ({})", each.id, each.name)).collect();
            bail!("{wanted:?} can be more than one {}: {}. Give an id", kind.word, many.join(", "))
        }
    }
}

/// The candidates among tagged resources, whose names are tags.
fn tagged(resources: &[Value], id: &str) -> Vec<Candidate> {
    let candidate = |each: &Value| Candidate {
        id: text(each, id).to_owned(),
        name: tag(each, "Name").unwrap_or_default().to_owned(),
    };
    resources.iter().map(candidate).collect()
}

fn all(
    kind: &Kind,
    wanted: &[String],
    candidates: impl FnOnce() -> anyhow::Result<Vec<Candidate>>,
) -> anyhow::Result<Vec<String>> {
    if wanted.iter().all(|each| is_id(each, kind.prefix)) {
        return Ok(wanted.to_vec());
    }
    let candidates = candidates()?;
    let one = |each: &String| {
        if is_id(each, kind.prefix) { Ok(each.clone()) } else { choose(kind, each, &candidates, false) }
    };
    wanted.iter().map(one).collect()
}

/// The ids of instances.
pub fn instances(client: &Client, wanted: &[String]) -> anyhow::Result<Vec<String>> {
    all(&INSTANCE, wanted, || Ok(alive_first(client.instances(Parameters::default())?)))
}

/// A name is free again when its instance is terminated. It means that one as long as nobody else has it: its reason and
/// its console's last words are still there.
fn alive_first(instances: Vec<Value>) -> Vec<Candidate> {
    let is_gone = |each: &Value| text(each, "instanceState.name") == "terminated";
    let (gone, alive): (Vec<_>, Vec<_>) = instances.into_iter().partition(is_gone);
    let mut candidates = tagged(&alive, "instanceId");
    let mut rest = tagged(&gone, "instanceId");
    rest.retain(|each| candidates.iter().all(|other| other.name != each.name));
    candidates.extend(rest);
    candidates
}

/// The id of an instance.
pub fn instance(client: &Client, wanted: &str) -> anyhow::Result<String> {
    instances(client, &[wanted.to_owned()])?.pop().context("there is no such instance")
}

/// The ids of volumes.
pub fn volumes(client: &Client, wanted: &[String]) -> anyhow::Result<Vec<String>> {
    all(&VOLUME, wanted, || {
        Ok(tagged(&client.describe("DescribeVolumes", Parameters::default(), "volumeSet")?, "volumeId"))
    })
}

/// The ids of snapshots.
pub fn snapshots(client: &Client, wanted: &[String]) -> anyhow::Result<Vec<String>> {
    all(&SNAPSHOT, wanted, || {
        // Others' tags are not shown.
        let own = Parameters::default().with("Owner.1", "self");
        Ok(tagged(&client.describe("DescribeSnapshots", own, "snapshotSet")?, "snapshotId"))
    })
}

/// The id of a volume.
pub fn volume(client: &Client, wanted: &str) -> anyhow::Result<String> {
    volumes(client, &[wanted.to_owned()])?.pop().context("there is no such volume")
}

/// The id of a snapshot.
pub fn snapshot(client: &Client, wanted: &str) -> anyhow::Result<String> {
    snapshots(client, &[wanted.to_owned()])?.pop().context("there is no such snapshot")
}

/// The id of an image. The beginning of its name is enough.
pub fn image(client: &Client, wanted: &str) -> anyhow::Result<String> {
    find_image(client, wanted, true)
}

/// The id of an image, whose name has to be given in full.
pub fn exact_image(client: &Client, wanted: &str) -> anyhow::Result<String> {
    find_image(client, wanted, false)
}

fn find_image(client: &Client, wanted: &str, abbreviated: bool) -> anyhow::Result<String> {
    if is_id(wanted, IMAGE.prefix) {
        return Ok(wanted.to_owned());
    }
    let candidates = |parameters: Parameters| -> anyhow::Result<Vec<Candidate>> {
        let candidate = |each: &Value| Candidate {
            id: text(each, "imageId").to_owned(),
            name: text(each, "name").to_owned(),
        };
        let found = client.describe("DescribeImages", parameters, "imagesSet")?;
        Ok(found.iter().map(candidate).collect())
    };
    // Whoever shares an image chooses its name, and shall not take the place of one's own with it.
    let own = candidates(Parameters::default().with("Owner.1", "self"))?;
    if let Some(id) = only(&IMAGE, wanted, &named(wanted, &own))? {
        return Ok(id);
    }
    let all = candidates(Parameters::default())?;
    let mut found = named(wanted, &all);
    if !found.is_empty() && abbreviated {
        found.extend(beginning(wanted, &own));
    }
    match only(&IMAGE, wanted, &found)? {
        Some(id) => Ok(id),
        None => choose(&IMAGE, wanted, &all, abbreviated),
    }
}

/// The id of a resource of any kind; a name is an instance's.
pub fn resource(client: &Client, wanted: &str) -> anyhow::Result<String> {
    match wanted.rsplit_once('-') {
        // Names such as web-1 look like short ids.
        Some((prefix, digits)) if digits.len() >= 8 && is_id(wanted, &format!("{prefix}-")) => {
            Ok(wanted.to_owned())
        }
        _ => instance(client, wanted),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::client::tests::serve;

    fn candidates(named: &[(&str, &str)]) -> Vec<Candidate> {
        named.iter().map(|(id, name)| Candidate { id: (*id).into(), name: (*name).into() }).collect()
    }

    #[test]
    fn a_name_means_one_resource_or_none() {
        let images = candidates(&[
            ("ami-1", "debian-12"),
            ("ami-2", "debian-12-arm"),
            ("ami-3", "micro"),
            ("ami-4", "twice"),
            ("ami-5", "twice"),
            ("ami-6", ""),
        ]);
        for (wanted, abbreviated, found) in [
            ("debian-12", true, Ok("ami-1")),
            ("mic", true, Ok("ami-3")),
            ("mic", false, Err("no image is named \"mic\": `innkeeper image list` lists what there is")),
            (
                "deb",
                true,
                Err(
                    "\"deb\" can be more than one image: ami-1 (debian-12), ami-2 (debian-12-arm). Give an id",
                ),
            ),
            (
                "twice",
                false,
                Err("\"twice\" can be more than one image: ami-4 (twice), ami-5 (twice). Give an id"),
            ),
            ("x", true, Err("no image is named \"x\": `innkeeper image list` lists what there is")),
        ] {
            let chosen = choose(&IMAGE, wanted, &images, abbreviated).map_err(|error| error.to_string());
            assert_eq!(chosen.as_deref().map_err(String::as_str), found, "{wanted}");
        }
    }

    #[test]
    fn a_terminated_instance_has_its_name_until_another_takes_it() {
        let instance = |id: &str, name: &str, state: &str| {
            json!({
                "instanceId": id,
                "instanceState": {"name": state},
                "tagSet": [{"key": "Name", "value": name}],
            })
        };
        let found = alive_first(vec![
            instance("i-1", "web", "terminated"),
            instance("i-2", "web", "running"),
            instance("i-3", "db", "terminated"),
        ]);
        assert_eq!(found, candidates(&[("i-2", "web"), ("i-3", "db")]));
    }

    #[test]
    fn a_resource_that_is_no_id_is_an_instances_name() {
        let instances = "<R><reservationSet><item><instancesSet><item><instanceId>i-2</instanceId><tagSet><item>\
                         <key>Name</key><value>web-1</value></item></tagSet></item></instancesSet></item>\
                         </reservationSet></R>";
        for (wanted, answers, id) in [
            ("web-1", vec![(200, instances.to_owned())], "i-2"),
            ("vol-0123456789abcdef0", Vec::new(), "vol-0123456789abcdef0"),
            ("sgr-12345678", Vec::new(), "sgr-12345678"),
        ] {
            let (client, server) = serve(answers);
            assert_eq!(resource(&client, wanted).unwrap(), id);
            server.join().unwrap();
        }
    }

    #[test]
    fn ones_own_image_comes_first() {
        let images = |images: &[(&str, &str)]| {
            let item = |(id, name): &(&str, &str)| {
                format!("<item><imageId>{id}</imageId><name>{name}</name></item>")
            };
            let items: String = images.iter().map(item).collect();
            (200, format!("<R><imagesSet>{items}</imagesSet></R>"))
        };
        let (own, other, micro) = (("ami-1", "debian"), ("ami-2", "debian"), ("ami-3", "micro"));
        let ambiguous = "\"mic\" can be more than one image: ami-4 (mic), ami-3 (micro). Give an id";
        for (wanted, answers, id) in [
            ("debian", vec![images(&[own])], Ok("ami-1")),
            ("deb", vec![images(&[own]), images(&[own])], Ok("ami-1")),
            ("debian", vec![images(&[micro]), images(&[micro, other])], Ok("ami-2")),
            ("mic", vec![images(&[micro]), images(&[micro, ("ami-4", "mic")])], Err(ambiguous)),
        ] {
            let (client, server) = serve(answers);
            let found = image(&client, wanted).map_err(|error| error.to_string());
            assert_eq!(found.as_deref().map_err(String::as_str), id);
            server.join().unwrap();
        }
    }

    #[test]
    fn ids_have_their_kinds_prefix() {
        for (text, prefix, is) in [
            ("i-0123456789abcdef0", "i-", true),
            ("i-web", "i-", false),
            ("i-", "i-", false),
            ("ami-12345678", "i-", false),
        ] {
            assert_eq!(is_id(text, prefix), is, "{text}");
        }
    }
}
