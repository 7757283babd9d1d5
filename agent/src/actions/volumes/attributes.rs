//! DescribeVolumeAttribute and ModifyVolumeAttribute; and EnableVolumeIO, which does by hand what `autoEnableIO` does.

use serde::{Deserialize, Serialize};

use crate::actions::lookup::find;
use crate::ids::VolumeId;
use crate::query::{Action, ApiError, Context};
use crate::records::{Instance, Volume};
use crate::state::World;

/// One attribute of a volume.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DescribeVolumeAttribute {
    volume_id: String,
    attribute: String,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Attributes {
    volume_id: String,
    #[serde(rename = "autoEnableIO")]
    auto_enable_io: Option<Value>,
    product_codes: Option<Vec<ProductCode>>,
}

/// A value, in requests and in answers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all(deserialize = "PascalCase"), deny_unknown_fields)]
struct Value {
    value: bool,
}

/// There are none.
#[derive(Debug, Serialize)]
enum ProductCode {}

impl Action for DescribeVolumeAttribute {
    const NAME: &'static str = "DescribeVolumeAttribute";
    type Response = Attributes;

    fn run(self, context: Context<'_>) -> Result<Attributes, ApiError> {
        let world = context.agent.state.read();
        let volume = find::<Volume>(&world, context, &self.volume_id)?;
        let mut answer = Attributes { volume_id: self.volume_id, ..Attributes::default() };
        match self.attribute.as_str() {
            "autoEnableIO" => answer.auto_enable_io = Some(Value { value: volume.auto_enable_io }),
            "productCodes" => answer.product_codes = Some(Vec::new()),
            other => {
                let reason = "A volume has autoEnableIO and productCodes.";
                return Err(ApiError::invalid(other, "attribute", reason));
            }
        }
        Ok(answer)
    }
}

/// Says whether a volume is to take writes again by itself, the next time that it is impaired.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct ModifyVolumeAttribute {
    volume_id: String,
    #[serde(rename = "AutoEnableIO")]
    auto_enable_io: Option<Value>,
}

impl ModifyVolumeAttribute {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<Volume, ApiError> {
        let volume = Volume::clone(find(world, context, &self.volume_id)?);
        match &self.auto_enable_io {
            Some(Value { value }) => Ok(Volume { auto_enable_io: *value, ..volume }),
            None => Err(ApiError::combination("No attributes specified.")),
        }
    }
}

impl Action for ModifyVolumeAttribute {
    const NAME: &'static str = "ModifyVolumeAttribute";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        context.agent.state.change(|draft| {
            let volume = self.plan(draft, context)?;
            draft.put(volume);
            Ok(())
        })
    }
}

/// Lets a volume that is impaired be used again, with whatever is on it. Without effect on one that is not. A guest that has
/// it has to let go of it first: what is on it is only known when its layers are opened anew.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct EnableVolumeIO {
    volume_id: String,
}

impl EnableVolumeIO {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<VolumeId, ApiError> {
        let volume = find::<Volume>(world, context, &self.volume_id)?;
        let attachment = volume.attachment.as_ref().filter(|_| volume.impairment.is_some());
        let instance = attachment.and_then(|attachment| world.get::<Instance>(&attachment.instance));
        if let Some(instance) = instance.filter(|instance| instance.lifecycle.state.holds_capacity()) {
            let message = format!(
                "{} is in use: stop {} or detach the volume first, and look at it with `innkeeper volume check`.",
                volume.id, instance.id
            );
            return Err(ApiError::new("IncorrectState", message));
        }
        Ok(volume.id.clone())
    }
}

impl Action for EnableVolumeIO {
    const NAME: &'static str = "EnableVolumeIO";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        let id = context.agent.state.change(|draft| {
            let id = self.plan(draft, context)?;
            if draft.get::<Volume>(&id).is_some_and(|volume| volume.impairment.is_some()) {
                draft.update::<Volume>(&id, |volume| volume.impairment = None);
            }
            Ok::<_, ApiError>(id)
        })?;
        context.agent.settle_volumes(&[id]);
        Ok(())
    }
}
