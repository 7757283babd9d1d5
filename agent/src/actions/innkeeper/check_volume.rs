//! InnkeeperCheckVolume: whether what is on volumes is as it was written.

use innkeeper_block::layered::{Report, Summary};
use serde::{Deserialize, Serialize};

use crate::actions::lookup::find;
use crate::ids::{LayerId, VolumeId};
use crate::instances::chain;
use crate::query::{Action, ApiError, Context};
use crate::records::{Instance, Volume};
use crate::serve::Agent;
use crate::state::World;
use crate::volumes::stack;

/// Reads all of volumes' layers but their data, and changes nothing.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct CheckVolume {
    #[serde(default, rename = "VolumeId")]
    ids: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    volume_set: Vec<Item>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    volume_id: String,
    /// Whether nothing is lost.
    is_sound: bool,
    /// From the bottom.
    layer_set: Vec<LayerItem>,
    finding_set: Vec<FindingItem>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct LayerItem {
    /// Counted from the bottom.
    layer: usize,
    layer_id: Option<String>,
    /// Of the volume, in bytes.
    size: Option<u64>,
    /// Bytes that it has data for.
    data: Option<u64>,
    /// Bytes that it says are zeroes.
    zeroes: Option<u64>,
    is_sealed: Option<bool>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct FindingItem {
    layer: usize,
    layer_id: Option<String>,
    problem: String,
    /// Whether something is lost. Else it is what a crash may leave.
    is_damage: bool,
}

impl Item {
    /// What was found out of a volume that is made of these layers.
    fn new(volume: &VolumeId, layers: &[LayerId], report: &Report) -> Self {
        let id = |layer: usize| layers.get(layer).map(ToString::to_string);
        let summary = |(layer, summary): (usize, &Option<Summary>)| {
            let summary = summary.as_ref();
            LayerItem {
                layer,
                layer_id: id(layer),
                size: summary.map(|summary| summary.size),
                data: summary.map(|summary| summary.data),
                zeroes: summary.map(|summary| summary.zeroes),
                is_sealed: summary.map(|summary| summary.is_sealed),
            }
        };
        let findings = report.findings.iter().map(|finding| FindingItem {
            layer: finding.layer,
            layer_id: id(finding.layer),
            problem: finding.problem.to_string(),
            is_damage: finding.problem.is_damage(),
        });
        Self {
            volume_id: volume.to_string(),
            is_sound: report.is_sound(),
            layer_set: report.layers.iter().enumerate().map(summary).collect(),
            finding_set: findings.collect(),
        }
    }
}

/// Looks at a volume that no guest has.
fn look(agent: &Agent, world: &World, volume: &VolumeId) -> Result<Report, ApiError> {
    let attachment = world.get::<Volume>(volume).and_then(|volume| volume.attachment.as_ref());
    let instance = attachment.and_then(|attachment| world.get::<Instance>(&attachment.instance));
    if let Some(instance) = instance.filter(|instance| instance.lifecycle.state.holds_capacity()) {
        let message = format!(
            "{volume} is in use: its layers change while {} has it. Stop the instance or detach the volume first.",
            instance.id
        );
        return Err(ApiError::new("IncorrectState", message));
    }
    agent.volumes.check(volume).map_err(|error| ApiError::internal(chain(&error)))
}

impl CheckVolume {
    fn volumes(&self, world: &World, context: Context<'_>) -> Result<Vec<(VolumeId, LayerId)>, ApiError> {
        if self.ids.is_empty() {
            return Err(ApiError::missing("VolumeId"));
        }
        let volumes = self.ids.iter().map(|id| find::<Volume>(world, context, id));
        volumes.map(|volume| volume.map(|volume| (volume.id.clone(), volume.layer.clone()))).collect()
    }
}

impl Action for CheckVolume {
    const NAME: &'static str = "InnkeeperCheckVolume";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.volumes(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let world = context.agent.state.read();
        let check = |(volume, top): (VolumeId, LayerId)| {
            let report = look(context.agent, &world, &volume)?;
            let layers: Vec<_> = stack::chain(&world, &top).iter().map(|layer| layer.id.clone()).collect();
            Ok::<_, ApiError>(Item::new(&volume, &layers, &report))
        };
        let volume_set = self.volumes(&world, context)?.into_iter().map(check).collect::<Result<_, _>>()?;
        Ok(Response { volume_set })
    }
}

#[cfg(test)]
mod tests {
    use innkeeper_block::layered::{Finding, Problem};

    use super::*;
    use crate::actions::testing::Client;
    use crate::query::xml;

    #[test]
    fn a_report_names_the_layers_of_the_volume() {
        let layers = [(); 2].map(|()| LayerId::random());
        let summary = Summary {
            id: uuid::Uuid::nil(),
            parent: None,
            size: 1 << 30,
            is_sealed: true,
            data: 8192,
            zeroes: 4096,
        };
        let damage = Finding { layer: 1, problem: Problem::Header("it is torn".into()) };
        let note = Finding { layer: 0, problem: Problem::NotSealed };
        for (findings, is_sound) in [(vec![note], true), (vec![damage], false)] {
            let report = Report { layers: vec![Some(summary.clone()), None], findings };
            let volume = VolumeId::random();
            let volume_set = vec![Item::new(&volume, &layers, &report)];
            let answer = xml::response("InnkeeperCheckVolume", "id", &Response { volume_set }).unwrap();
            for part in [
                format!("<volumeId>{volume}</volumeId><isSound>{is_sound}</isSound>"),
                format!("<layer>0</layer><layerId>{}</layerId><size>1073741824</size>", layers[0]),
                "<data>8192</data><zeroes>4096</zeroes><isSealed>true</isSealed>".to_owned(),
                format!("<item><layer>1</layer><layerId>{}</layerId></item>", layers[1]),
                format!("<isDamage>{}</isDamage>", !is_sound),
            ] {
                assert!(answer.contains(&part), "{part}: {answer}");
            }
        }
    }

    #[test]
    fn what_is_no_volume_is_not_checked() {
        let client = Client::new();
        client.refuses(&[
            ("InnkeeperCheckVolume", "MissingParameter"),
            ("InnkeeperCheckVolume&VolumeId.1=x", "InvalidVolumeID.Malformed"),
            ("InnkeeperCheckVolume&VolumeId.1=vol-12345678", "InvalidVolume.NotFound"),
        ]);
    }
}
