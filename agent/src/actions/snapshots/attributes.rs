//! DescribeSnapshotAttribute, ModifySnapshotAttribute and ResetSnapshotAttribute: who may make volumes of a snapshot.

use serde::{Deserialize, Serialize};

use crate::actions::lookup::find_own;
use crate::actions::sharing::{Changes, EVERYBODY, Permission, is_account};
use crate::query::{Action, ApiError, Context};
use crate::records::Snapshot;
use crate::state::World;

/// The attribute that can be changed.
const PERMISSION: &str = "createVolumePermission";

/// The most permissions that are given or taken at once.
const MAX_CHANGES: usize = 500;

/// One attribute of a snapshot.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DescribeSnapshotAttribute {
    snapshot_id: String,
    attribute: String,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Attributes {
    snapshot_id: String,
    create_volume_permission: Option<Vec<Permission>>,
    product_codes: Option<Vec<ProductCode>>,
}

/// There are none.
#[derive(Debug, Serialize)]
enum ProductCode {}

impl Action for DescribeSnapshotAttribute {
    const NAME: &'static str = "DescribeSnapshotAttribute";
    type Response = Attributes;

    fn run(self, context: Context<'_>) -> Result<Attributes, ApiError> {
        let world = context.agent.state.read();
        let snapshot = find_own::<Snapshot>(&world, context, &self.snapshot_id)?;
        let mut answer = Attributes { snapshot_id: self.snapshot_id, ..Attributes::default() };
        match self.attribute.as_str() {
            PERMISSION => {
                let permissions = &snapshot.create_volume_permissions;
                answer.create_volume_permission = Some(permissions.iter().map(Permission::from).collect());
            }
            "productCodes" => answer.product_codes = Some(Vec::new()),
            other => {
                let reason = "A snapshot has createVolumePermission and productCodes.";
                return Err(ApiError::invalid(other, "attribute", reason));
            }
        }
        Ok(answer)
    }
}

/// Gives or takes the permission to make volumes of a snapshot.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct ModifySnapshotAttribute {
    snapshot_id: String,
    attribute: Option<String>,
    create_volume_permission: Option<Wanted>,
    operation_type: Option<String>,
    #[serde(default, rename = "UserId")]
    users: Vec<String>,
    #[serde(default, rename = "UserGroup")]
    groups: Vec<String>,
}

/// `CreateVolumePermission`.
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
}

fn account(id: &str) -> Result<String, ApiError> {
    if is_account(id) {
        return Ok(id.to_owned());
    }
    Err(ApiError::invalid(id, "userId", "An account has 12 digits."))
}

fn group(name: &str) -> Result<String, ApiError> {
    match name {
        EVERYBODY => Ok(name.to_owned()),
        _ => Err(ApiError::invalid(name, "group", "There is the group all.")),
    }
}

impl Who {
    fn read(&self) -> Result<String, ApiError> {
        match (&self.user_id, &self.group) {
            (Some(id), None) => account(id),
            (None, Some(name)) => group(name),
            _ => Err(ApiError::combination("A permission must have either UserId or Group.")),
        }
    }
}

impl ModifySnapshotAttribute {
    /// Those who get the permission, and those who lose it.
    fn changes(&self) -> Result<Changes, ApiError> {
        let read = |all: &[Who]| all.iter().map(Who::read).collect::<Result<Vec<_>, _>>();
        let changes = match &self.create_volume_permission {
            Some(wanted) => Changes { add: read(&wanted.add)?, remove: read(&wanted.remove)? },
            None => Changes::default(),
        };
        let mut named = self.users.iter().map(|id| account(id)).collect::<Result<Vec<_>, _>>()?;
        named.extend(self.groups.iter().map(|name| group(name)).collect::<Result<Vec<_>, _>>()?);
        let changes = changes.and_named(named, self.operation_type.as_deref())?;
        if changes.is_empty() {
            return Err(ApiError::combination("No attributes specified."));
        }
        if !changes.add.is_empty() && !changes.remove.is_empty() {
            let message = "A request can give permissions or take them, and not both.";
            return Err(ApiError::combination(message));
        }
        if changes.add.len() + changes.remove.len() > MAX_CHANGES {
            let message = format!("At most {MAX_CHANGES} permissions can be given or taken at once.");
            return Err(ApiError::new("InvalidParameterValue", message));
        }
        Ok(changes)
    }

    /// The snapshot as it will be.
    fn plan(&self, world: &World, context: Context<'_>) -> Result<Snapshot, ApiError> {
        check_attribute(self.attribute.as_deref().unwrap_or(PERMISSION))?;
        let mut snapshot = Snapshot::clone(find_own(world, context, &self.snapshot_id)?);
        let changes = self.changes()?;
        if snapshot.encrypted && changes.makes_public() {
            let message = "Encrypted snapshots cannot be made public: name the accounts.";
            return Err(ApiError::new("OperationNotPermitted", message));
        }
        changes.apply(&mut snapshot.create_volume_permissions);
        Ok(snapshot)
    }
}

fn check_attribute(attribute: &str) -> Result<(), ApiError> {
    if attribute == PERMISSION {
        return Ok(());
    }
    let reason = "Of a snapshot, only createVolumePermission can be changed.";
    Err(ApiError::invalid(attribute, "attribute", reason))
}

impl Action for ModifySnapshotAttribute {
    const NAME: &'static str = "ModifySnapshotAttribute";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        context.agent.state.change(|draft| {
            let snapshot = self.plan(draft, context)?;
            draft.put(snapshot);
            Ok(())
        })
    }
}

/// Takes the permissions of all but the owner.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct ResetSnapshotAttribute {
    snapshot_id: String,
    attribute: String,
}

impl ResetSnapshotAttribute {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<Snapshot, ApiError> {
        check_attribute(&self.attribute)?;
        let snapshot = Snapshot::clone(find_own(world, context, &self.snapshot_id)?);
        Ok(Snapshot { create_volume_permissions: Vec::new(), ..snapshot })
    }
}

impl Action for ResetSnapshotAttribute {
    const NAME: &'static str = "ResetSnapshotAttribute";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        context.agent.state.change(|draft| {
            let snapshot = self.plan(draft, context)?;
            draft.put(snapshot);
            Ok(())
        })
    }
}
