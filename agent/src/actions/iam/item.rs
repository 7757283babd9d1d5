//! How roles and instance profiles look in answers.

use serde::Serialize;

use crate::actions::lookup::time;
use crate::query::sigv4::encode;
use crate::query::tags::tag_set;
use crate::records::{InstanceProfile, Role};
use crate::state::World;

/// `Role`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct RoleItem {
    path: String,
    pub role_name: String,
    role_id: String,
    arn: String,
    create_date: String,
    assume_role_policy_document: String,
    description: Option<String>,
    max_session_duration: u32,
    /// Not in lists.
    tags: Option<Vec<TagItem>>,
}

/// `InstanceProfile`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ProfileItem {
    path: String,
    pub instance_profile_name: String,
    instance_profile_id: String,
    arn: String,
    create_date: String,
    roles: Vec<RoleItem>,
    /// Not in lists.
    tags: Option<Vec<TagItem>>,
}

/// A tag, whose names begin with a capital here.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct TagItem {
    pub key: String,
    value: String,
}

/// A resource's tags.
pub fn tags_of(world: &World, id: &str) -> Vec<TagItem> {
    let tags = tag_set(world.tags(id)).into_iter();
    tags.map(|tag| TagItem { key: tag.key, value: tag.value }).collect()
}

/// A policy's document, which is percent-encoded in answers.
pub fn document(text: &str) -> String {
    encode(text, false)
}

impl RoleItem {
    /// As it is in lists, and where it is a part of something else.
    pub fn listed(role: &Role) -> Self {
        Self {
            path: role.path.clone(),
            role_name: role.name.clone(),
            role_id: role.id.clone(),
            arn: role.arn(),
            create_date: time(role.created),
            assume_role_policy_document: document(&role.trust),
            description: role.description.clone(),
            max_session_duration: role.max_session_duration,
            tags: None,
        }
    }

    /// As it is on its own.
    pub fn new(world: &World, role: &Role) -> Self {
        Self { tags: some(tags_of(world, &role.id)), ..Self::listed(role) }
    }
}

impl ProfileItem {
    /// As it is in lists.
    pub fn listed(world: &World, profile: &InstanceProfile) -> Self {
        let role = profile.role.as_ref().and_then(|role| world.get::<Role>(role));
        Self {
            path: profile.path.clone(),
            instance_profile_name: profile.name.clone(),
            instance_profile_id: profile.id.clone(),
            arn: profile.arn(),
            create_date: time(profile.created),
            roles: role.map(|role| RoleItem::listed(role)).into_iter().collect(),
            tags: None,
        }
    }

    /// As it is on its own.
    pub fn new(world: &World, profile: &InstanceProfile) -> Self {
        Self { tags: some(tags_of(world, &profile.id)), ..Self::listed(world, profile) }
    }
}

/// Without tags, there is no list of them.
fn some(tags: Vec<TagItem>) -> Option<Vec<TagItem>> {
    if tags.is_empty() { None } else { Some(tags) }
}
