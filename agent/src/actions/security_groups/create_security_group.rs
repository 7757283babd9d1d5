//! CreateSecurityGroup.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::permissions::{default_egress, is_plain};
use crate::actions::lookup::{arn, find};
use crate::ids::{SecurityGroupId, VpcId};
use crate::query::tags::{TagSpecification, specified};
use crate::query::{Action, ApiError, Context};
use crate::records::{SecurityGroup, Vpc};
use crate::state::World;

/// A new group lets nothing in and everything out.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct CreateSecurityGroup {
    group_name: String,
    group_description: String,
    vpc_id: Option<String>,
    #[serde(default, rename = "TagSpecification")]
    tags: Vec<TagSpecification>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    group_id: String,
    security_group_arn: String,
    #[serde(rename = "tagSet", serialize_with = "crate::actions::tags::set")]
    tags: BTreeMap<String, String>,
}

impl CreateSecurityGroup {
    /// EC2 cuts spaces off the end.
    fn name(&self) -> &str {
        self.group_name.trim_end()
    }

    /// Whether there can be such a group, and in which VPC.
    fn vpc(&self, world: &World, context: Context<'_>) -> Result<VpcId, ApiError> {
        let name = self.name();
        for (text, parameter) in [(name, "GroupName"), (&*self.group_description, "GroupDescription")] {
            if text.is_empty() {
                return Err(ApiError::missing(parameter));
            }
            if !text.is_ascii() {
                let reason = "Character sets beyond ASCII are not supported.";
                return Err(ApiError::invalid(text, parameter, reason));
            }
            if !is_plain(text) {
                let reason = "It must be at most 255 letters, digits, spaces and ._-:/()#,@[]+=&;{}!$*.";
                return Err(ApiError::invalid(text, parameter, reason));
            }
        }
        if name.starts_with("sg-") {
            let reason = "Group names may not be in the format sg-*.";
            return Err(ApiError::invalid(name, "GroupName", reason));
        }
        if name == "default" {
            let message = "Cannot use reserved security group name: default";
            return Err(ApiError::new("InvalidGroup.Reserved", message));
        }
        let vpc = match &self.vpc_id {
            Some(id) => find::<Vpc>(world, context, id)?,
            None => world
                .all::<Vpc>()
                .find(|vpc| vpc.is_default && vpc.owner == context.caller.account)
                .ok_or_else(|| ApiError::new("VPCIdNotSpecified", "No default VPC for this user"))?,
        };
        if world.all::<SecurityGroup>().any(|group| group.vpc == vpc.id && group.name == name) {
            let message = format!("The security group '{name}' already exists for VPC '{}'", vpc.id);
            return Err(ApiError::new("InvalidGroup.Duplicate", message));
        }
        Ok(vpc.id.clone())
    }
}

impl Action for CreateSecurityGroup {
    const NAME: &'static str = "CreateSecurityGroup";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        specified(&self.tags, &["security-group"])?;
        self.vpc(&context.agent.state.read(), context).map(|_| ())
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let tags = specified(&self.tags, &["security-group"])?.remove("security-group").unwrap_or_default();
        let id = SecurityGroupId::random();
        let owner = &context.caller.account;
        context.agent.state.change(|draft| {
            let vpc = self.vpc(draft, context)?;
            draft.put(SecurityGroup {
                id: id.clone(),
                name: self.name().to_owned(),
                description: self.group_description.clone(),
                owner: owner.clone(),
                vpc,
                rules: vec![default_egress()],
            });
            draft.tag(&id, tags.clone());
            Ok::<_, ApiError>(())
        })?;
        Ok(Response {
            security_group_arn: arn(context, owner, "security-group", &id),
            group_id: id.to_string(),
            tags,
        })
    }
}
