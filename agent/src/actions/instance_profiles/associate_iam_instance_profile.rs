//! AssociateIamInstanceProfile, DisassociateIamInstanceProfile and ReplaceIamInstanceProfileAssociation.
//!
//! EC2 answers with what is on its way; here it is done by then, and a description says so.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::item::AssociationItem;
use super::{Specification, associate, find};
use crate::actions::lookup::find_own;
use crate::query::{Action, ApiError, Context};
use crate::records::{Instance, InstanceState, ProfileAssociation};
use crate::state::World;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    iam_instance_profile_association: AssociationItem,
}

/// Records what an instance shall have.
fn change(
    context: Context<'_>,
    state: &'static str,
    plan: impl Fn(&World) -> Result<(Instance, ProfileAssociation), ApiError>,
) -> Result<Response, ApiError> {
    context.agent.state.change(|draft| {
        let (instance, association) = plan(draft)?;
        let iam_instance_profile_association = AssociationItem::new(&instance.id, &association, state);
        draft.put(instance);
        Ok(Response { iam_instance_profile_association })
    })
}

/// Whether an instance is not on its way out.
fn is_there(instance: &Instance) -> Result<(), ApiError> {
    match instance.lifecycle.state {
        InstanceState::ShuttingDown | InstanceState::Terminated => {
            let message =
                format!("The instance '{}' is not in the 'running' or 'stopped' state.", instance.id);
            Err(ApiError::new("IncorrectInstanceState", message))
        }
        _ => Ok(()),
    }
}

/// Gives a profile to an instance that has none.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct AssociateIamInstanceProfile {
    instance_id: String,
    iam_instance_profile: Specification,
}

impl AssociateIamInstanceProfile {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<(Instance, ProfileAssociation), ApiError> {
        let instance = find_own::<Instance>(world, context, &self.instance_id)?;
        let profile = self.iam_instance_profile.find(world, context)?;
        is_there(instance)?;
        if instance.instance_profile.is_some() {
            let message = format!("There is an existing association for instance {}", instance.id);
            return Err(ApiError::new("IncorrectState", message));
        }
        let association = associate(profile, Timestamp::now());
        let instance_profile = Some(association.clone());
        Ok((Instance { instance_profile, ..Instance::clone(instance) }, association))
    }
}

impl Action for AssociateIamInstanceProfile {
    const NAME: &'static str = "AssociateIamInstanceProfile";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        change(context, "associating", |world| self.plan(world, context))
    }
}

/// Takes its profile away from an instance. Credentials that it has stay good until their end.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DisassociateIamInstanceProfile {
    association_id: String,
}

impl DisassociateIamInstanceProfile {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<(Instance, ProfileAssociation), ApiError> {
        let mut instance = Instance::clone(find(world, context, &self.association_id)?);
        let association = instance.instance_profile.take();
        let association =
            association.ok_or_else(|| ApiError::internal("an association without a profile"))?;
        Ok((instance, association))
    }
}

impl Action for DisassociateIamInstanceProfile {
    const NAME: &'static str = "DisassociateIamInstanceProfile";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        change(context, "disassociating", |world| self.plan(world, context))
    }
}

/// Gives an instance another profile than it has, without a moment between. It is another association.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct ReplaceIamInstanceProfileAssociation {
    association_id: String,
    iam_instance_profile: Specification,
}

impl ReplaceIamInstanceProfileAssociation {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<(Instance, ProfileAssociation), ApiError> {
        let instance = find(world, context, &self.association_id)?;
        let profile = self.iam_instance_profile.find(world, context)?;
        is_there(instance)?;
        let association = associate(profile, Timestamp::now());
        let instance_profile = Some(association.clone());
        Ok((Instance { instance_profile, ..Instance::clone(instance) }, association))
    }
}

impl Action for ReplaceIamInstanceProfileAssociation {
    const NAME: &'static str = "ReplaceIamInstanceProfileAssociation";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        change(context, "associating", |world| self.plan(world, context))
    }
}
