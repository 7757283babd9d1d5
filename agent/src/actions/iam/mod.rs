//! IAM's actions, as far as instance profiles need them: roles with their policies, and the profiles that give a role to
//! an instance. There are no users, groups or managed policies; an access key is the account's.

mod create_instance_profile;
mod create_role;
mod get_instance_profile;
mod get_role;
mod get_user;
mod item;
mod members;
mod profile_roles;
mod role_policies;
mod tags;
#[cfg(test)]
mod tests;
mod update_role;

use std::sync::Arc;

use crate::query::dispatch::Registry;
use crate::query::pages::page;
use crate::query::{ApiError, Context};
use crate::records::{InstanceProfile, Role};
use crate::state::{Kept, World};

pub(super) fn register(registry: &mut Registry) {
    registry.add::<create_instance_profile::CreateInstanceProfile>();
    registry.add::<create_instance_profile::DeleteInstanceProfile>();
    registry.add::<create_role::CreateRole>();
    registry.add::<create_role::DeleteRole>();
    registry.add::<get_instance_profile::GetInstanceProfile>();
    registry.add::<get_instance_profile::ListInstanceProfiles>();
    registry.add::<get_instance_profile::ListInstanceProfilesForRole>();
    registry.add::<get_role::GetRole>();
    registry.add::<get_role::ListRoles>();
    registry.add::<get_user::GetUser>();
    registry.add::<profile_roles::AddRoleToInstanceProfile>();
    registry.add::<profile_roles::RemoveRoleFromInstanceProfile>();
    registry.add::<role_policies::DeleteRolePolicy>();
    registry.add::<role_policies::GetRolePolicy>();
    registry.add::<role_policies::ListAttachedRolePolicies>();
    registry.add::<role_policies::ListRolePolicies>();
    registry.add::<role_policies::PutRolePolicy>();
    registry.add::<tags::ListInstanceProfileTags>();
    registry.add::<tags::ListRoleTags>();
    registry.add::<tags::TagInstanceProfile>();
    registry.add::<tags::TagRole>();
    registry.add::<tags::UntagInstanceProfile>();
    registry.add::<tags::UntagRole>();
    registry.add::<update_role::UpdateAssumeRolePolicy>();
    registry.add::<update_role::UpdateRole>();
}

/// A record that requests name by its name.
trait Entity: Kept {
    /// What it is called in messages.
    const WHAT: &'static str;
    /// The most that an account has, and what that limit is called. They are IAM's.
    const QUOTA: (usize, &'static str);
    /// The most characters of a name.
    const LONGEST_NAME: usize;

    /// The account.
    fn owner(&self) -> &str;
    /// Its name.
    fn name(&self) -> &str;
}

macro_rules! entities {
    ($($record:ty, $what:literal, $quota:literal, $limit:literal, $longest:literal;)*) => {$(
        impl Entity for $record {
            const WHAT: &'static str = $what;
            const QUOTA: (usize, &'static str) = ($quota, $limit);
            const LONGEST_NAME: usize = $longest;

            fn owner(&self) -> &str {
                &self.owner
            }

            fn name(&self) -> &str {
                &self.name
            }
        }
    )*};
}

entities! {
    InstanceProfile, "instance profile", 1000, "InstanceProfilesPerAccount", 128;
    Role, "role", 1000, "RolesPerAccount", 64;
}

/// All of a kind that the caller's account has, in the order of their names.
fn own<'w, R: Entity>(world: &'w World, context: Context<'_>) -> Vec<&'w Arc<R>> {
    let account = context.caller.account.as_str();
    let mut found: Vec<_> = world.all::<R>().filter(|record| record.owner() == account).collect();
    found.sort_by(|one, other| one.name().cmp(other.name()));
    found
}

/// The one with a name.
fn named<'w, R: Entity>(world: &'w World, context: Context<'_>, name: &str) -> Result<&'w Arc<R>, ApiError> {
    let account = context.caller.account.as_str();
    let mut all = world.all::<R>();
    all.find(|record| record.owner() == account && record.name() == name)
        .ok_or_else(|| missing(format!("The {} with name {name} cannot be found.", R::WHAT)))
}

fn missing(message: String) -> ApiError {
    ApiError::new("NoSuchEntity", message)
}

fn limit_exceeded(limit: &str, count: usize) -> ApiError {
    ApiError::new("LimitExceeded", format!("Cannot exceed quota for {limit}: {count}"))
}

/// Whether there can be a new one with a name and a path.
fn room_for<R: Entity>(world: &World, context: Context<'_>, name: &str, path: &str) -> Result<(), ApiError> {
    check_name(name, R::LONGEST_NAME)?;
    check_path(path)?;
    let own = own::<R>(world, context);
    if own.iter().any(|record| record.name().eq_ignore_ascii_case(name)) {
        let message = format!("A {} with name {name} already exists. Case makes no difference.", R::WHAT);
        return Err(ApiError::new("EntityAlreadyExists", message));
    }
    let (quota, limit) = R::QUOTA;
    if own.len() >= quota { Err(limit_exceeded(limit, quota)) } else { Ok(()) }
}

fn check_name(name: &str, longest: usize) -> Result<(), ApiError> {
    let is_fit = |byte: u8| byte.is_ascii_alphanumeric() || b"_+=,.@-".contains(&byte);
    if (1..=longest).contains(&name.len()) && name.bytes().all(is_fit) {
        return Ok(());
    }
    let message =
        format!("The name {name:?} is not 1 to {longest} letters, digits and characters of _+=,.@-");
    Err(ApiError::new("ValidationError", message))
}

/// Whether a text is `/`, or begins and ends with one and has something between.
fn check_path(path: &str) -> Result<(), ApiError> {
    let is_printable = path.bytes().all(|byte| byte.is_ascii_graphic());
    let is_path = path.starts_with('/') && path.ends_with('/') && path != "//";
    if is_printable && is_path && path.len() <= 512 {
        return Ok(());
    }
    let message = format!("The path {path:?} does not begin and end with a slash, or is longer than 512.");
    Err(ApiError::new("ValidationError", message))
}

/// Cuts a page out of what is listed: it, and the marker of the next one, if there is more.
fn listed<T>(
    items: Vec<T>,
    key: impl Fn(&T) -> &str,
    max_items: Option<i64>,
    marker: Option<&str>,
) -> Result<(Vec<T>, Option<String>), ApiError> {
    page(items, key, max_items, marker, 1)
}
