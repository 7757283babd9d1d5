//! ModifyImageAttribute.

use serde::Deserialize;

use super::check_description;
use crate::actions::lookup::find_own;
use crate::actions::sharing::{Changes, EVERYBODY, is_account};
use crate::query::{Action, ApiError, Context};
use crate::records::Image;
use crate::state::World;

/// Changes who may launch an image, its description, or whether its instances need tokens for their metadata.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct ModifyImageAttribute {
    image_id: String,
    attribute: Option<String>,
    value: Option<String>,
    description: Option<Value>,
    imds_support: Option<Value>,
    launch_permission: Option<Wanted>,
    operation_type: Option<String>,
    #[serde(default, rename = "UserId")]
    users: Vec<String>,
    #[serde(default, rename = "UserGroup")]
    groups: Vec<String>,
    #[serde(default, rename = "OrganizationArn")]
    organizations: Vec<String>,
    #[serde(default, rename = "OrganizationalUnitArn")]
    units: Vec<String>,
    #[serde(default, rename = "ProductCode")]
    product_codes: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Value {
    value: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Wanted {
    #[serde(default)]
    add: Vec<Who>,
    #[serde(default)]
    remove: Vec<Who>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Who {
    user_id: Option<String>,
    group: Option<String>,
    organization_arn: Option<String>,
    organizational_unit_arn: Option<String>,
}

fn account(id: &str) -> Result<String, ApiError> {
    if is_account(id) {
        return Ok(id.to_owned());
    }
    let message = format!("Invalid attribute item value \"{id}\" for userId item type.");
    Err(ApiError::new("InvalidAMIAttributeItemValue", message))
}

fn group(name: &str) -> Result<String, ApiError> {
    if name == EVERYBODY {
        return Ok(name.to_owned());
    }
    let message = format!("Invalid attribute item value \"{name}\" for group item type.");
    Err(ApiError::new("InvalidAMIAttributeItemValue", message))
}

fn no_organizations() -> ApiError {
    let message = "This host has no organizations: share an image with accounts, by UserId.";
    ApiError::new("UnsupportedOperation", message)
}

impl Who {
    fn read(&self) -> Result<String, ApiError> {
        if self.organization_arn.is_some() || self.organizational_unit_arn.is_some() {
            return Err(no_organizations());
        }
        match (&self.user_id, &self.group) {
            (Some(id), None) => account(id),
            (None, Some(name)) => group(name),
            _ => {
                let message = "A launch permission must have either UserId or Group.";
                Err(ApiError::combination(message))
            }
        }
    }
}

impl ModifyImageAttribute {
    /// Those who may launch it from now on, and those who no longer may.
    fn changes(&self) -> Result<Changes, ApiError> {
        if !self.organizations.is_empty() || !self.units.is_empty() {
            return Err(no_organizations());
        }
        let read = |all: &[Who]| all.iter().map(Who::read).collect::<Result<Vec<_>, _>>();
        let changes = match &self.launch_permission {
            Some(wanted) => Changes { add: read(&wanted.add)?, remove: read(&wanted.remove)? },
            None => Changes::default(),
        };
        let mut named = self.users.iter().map(|id| account(id)).collect::<Result<Vec<_>, _>>()?;
        named.extend(self.groups.iter().map(|name| group(name)).collect::<Result<Vec<_>, _>>()?);
        changes.and_named(named, self.operation_type.as_deref())
    }

    /// The image as it will be.
    fn plan(&self, world: &World, context: Context<'_>) -> Result<Image, ApiError> {
        if !self.product_codes.is_empty() {
            let message = "This host has no marketplace: leave ProductCode out.";
            return Err(ApiError::new("UnsupportedOperation", message));
        }
        let mut image = Image::clone(find_own(world, context, &self.image_id)?);
        let mut description = self.description.as_ref().map(|description| &description.value);
        let mut imds_support = self.imds_support.as_ref().map(|support| &support.value);
        match (self.attribute.as_deref(), &self.value) {
            (None | Some("launchPermission"), None) => {}
            (Some("description"), value) => description = description.or(value.as_ref()),
            (Some("imdsSupport"), value) => imds_support = imds_support.or(value.as_ref()),
            (None, Some(_)) => return Err(ApiError::missing("Attribute")),
            (Some(other), _) => {
                let reason = "There are description, imdsSupport and launchPermission, which has no Value.";
                return Err(ApiError::invalid(other, "Attribute", reason));
            }
        }
        let changes = self.changes()?;
        if description.is_none() && imds_support.is_none() && changes.is_empty() {
            let message = "No attributes specified.";
            return Err(ApiError::combination(message));
        }
        if let Some(text) = description {
            check_description(Some(text))?;
            image.description = Some(text.clone()).filter(|text| !text.is_empty());
        }
        match imds_support.map(String::as_str) {
            None => {}
            Some("v2.0") => image.imds_support = Some("v2.0".to_owned()),
            Some(other) => {
                return Err(ApiError::invalid(other, "ImdsSupport", "It can be set to v2.0 only."));
            }
        }
        let volumes = || image.block_devices.iter().filter_map(|mapping| mapping.volume.as_ref());
        if changes.makes_public() && volumes().any(|volume| volume.encrypted) {
            let message = "An image with encrypted volumes cannot be made public.";
            return Err(ApiError::new("OperationNotPermitted", message));
        }
        changes.apply(&mut image.launch_permissions);
        Ok(image)
    }
}

impl Action for ModifyImageAttribute {
    const NAME: &'static str = "ModifyImageAttribute";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(|_| ())
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        context.agent.state.change(|draft| {
            let image = self.plan(draft, context)?;
            draft.put(image);
            Ok(())
        })
    }
}
