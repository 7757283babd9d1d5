//! `meta-data/iam`: the instance's profile, and the credentials of its role.

use serde::Serialize;

use super::{Category, FIRST, View};
use crate::iam::{self, Profile, SessionCredentials};

pub fn iam<'v>(view: View<'v>, profile: &Profile, category: Category<'v>) -> Category<'v> {
    let credentials = iam::credentials(view.world, view.instance, view.now);
    let category = category.some(FIRST, "info", Some(info(profile)));
    category.category_if(credentials.is_some(), FIRST, "security-credentials", move |inside| {
        match &credentials {
            Some(credentials) => inside.named(credentials.role.clone(), document(credentials)),
            None => inside,
        }
    })
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Info<'v> {
    code: &'static str,
    last_updated: String,
    instance_profile_arn: &'v str,
    instance_profile_id: &'v str,
}

fn info(profile: &Profile) -> String {
    super::json(&Info {
        code: "Success",
        last_updated: super::second(profile.last_updated),
        instance_profile_arn: &profile.arn,
        instance_profile_id: &profile.id,
    })
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Document<'v> {
    code: &'static str,
    last_updated: String,
    #[serde(rename = "Type")]
    kind: &'static str,
    access_key_id: &'v str,
    secret_access_key: &'v str,
    token: &'v str,
    expiration: String,
}

fn document(credentials: &SessionCredentials) -> String {
    super::json(&Document {
        code: "Success",
        last_updated: super::second(credentials.last_updated),
        kind: "AWS-HMAC",
        access_key_id: &credentials.access_key_id,
        secret_access_key: &credentials.secret_access_key,
        token: &credentials.token,
        expiration: super::second(credentials.expiration),
    })
}
