//! Who a request comes from, and what it may do.
//!
//! An access key of the account may do everything. An instance that has an instance profile is given temporary
//! credentials ([`session`]) by the metadata service; with these it is the profile's role, and may do what the role's
//! policies allow ([`policy`]). The role is looked up with each request, so that a policy that is changed counts at once.
//!
//! [`identify`] finds out who has signed a request, [`authorise`] whether that may be done; the records are
//! [`Role`] and [`InstanceProfile`].

pub mod policy;
pub mod session;

use jiff::Timestamp;

use crate::query::sigv4::Unfit;
use crate::query::{ApiError, Caller, Service};
use crate::records::{AccessKey, Instance, InstanceProfile, InstanceState, Role, Secret};
use crate::state::World;

use self::policy::{Decision, Policy, decide, trusts_ec2};
use self::session::Claims;

/// What following `/events` is called in policies.
pub const FOLLOW_EVENTS: &str = "innkeeper:FollowEvents";

/// What giving an instance a role is called in policies, besides the action that does it. Whoever may launch instances
/// could otherwise have every role.
pub const PASS_ROLE: &str = "iam:PassRole";

/// Temporary credentials, as the metadata service shows them.
#[derive(Clone, PartialEq, Eq)]
pub struct SessionCredentials {
    /// The role's name.
    pub role: String,
    /// `ASIA…`.
    pub access_key_id: String,
    /// What goes with it.
    pub secret_access_key: String,
    /// What has to be sent with each request.
    pub token: String,
    /// When they were made.
    pub last_updated: Timestamp,
    /// When they end.
    pub expiration: Timestamp,
}

impl std::fmt::Debug for SessionCredentials {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("SessionCredentials")
            .field("role", &self.role)
            .field("access_key_id", &self.access_key_id)
            .finish_non_exhaustive()
    }
}

/// The instance profile of an instance, as the metadata service shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// Its ARN.
    pub arn: String,
    /// `AIPA…`.
    pub id: String,
    /// The name of its role, if it has one.
    pub role: Option<String>,
    /// Since when the instance has it.
    pub last_updated: Timestamp,
}

/// An instance's profile, unless it was deleted since.
pub fn profile_of(world: &World, instance: &Instance) -> Option<Profile> {
    let association = instance.instance_profile.as_ref()?;
    let profile = world.get::<InstanceProfile>(&association.profile)?;
    let role = role_of(world, profile).map(|role| role.name.clone());
    Some(Profile { arn: profile.arn(), id: profile.id.clone(), role, last_updated: association.since })
}

/// An instance's temporary credentials. None without a profile, with one that has no role, or with a role that does not
/// trust EC2.
pub fn credentials(world: &World, instance: &Instance, now: Timestamp) -> Option<SessionCredentials> {
    let association = instance.instance_profile.as_ref()?;
    let role = role_of(world, world.get::<InstanceProfile>(&association.profile)?)?;
    if trusts_ec2(&role.trust) != Ok(true) {
        return None;
    }
    let claims = Claims::current(&instance.id, &role.id, association.since, now);
    let made = claims.sign(world.get::<Secret>(Secret::THIS)?);
    Some(SessionCredentials {
        role: role.name.clone(),
        access_key_id: made.access_key_id,
        secret_access_key: made.secret_access_key,
        token: made.token,
        last_updated: claims.issued,
        expiration: claims.expires,
    })
}

fn role_of<'w>(world: &'w World, profile: &InstanceProfile) -> Option<&'w Role> {
    world.get::<Role>(profile.role.as_ref()?).map(AsRef::as_ref)
}

/// Who may have signed a request, if what it was signed with fits.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// The access key's secret half.
    pub secret: String,
    /// Who has it.
    pub caller: Caller,
}

/// Finds out whose an access key is. A temporary one goes with a token, and another one without.
pub fn identify(
    world: &World,
    access_key: &str,
    token: Option<&str>,
    now: Timestamp,
) -> Result<Identity, Unfit> {
    let Some(token) = token else {
        let key = world.get::<AccessKey>(access_key).ok_or(Unfit::Unknown)?;
        return Ok(Identity { secret: key.secret.clone(), caller: Caller::root(&key.account, access_key) });
    };
    let master = world.get::<Secret>(Secret::THIS).ok_or(Unfit::Unknown)?;
    let claims = Claims::verify(master, access_key, token, now)?;
    let instance = world.get::<Instance>(&claims.instance).ok_or(Unfit::Unknown)?;
    let role = world.get::<Role>(&claims.role).ok_or(Unfit::Unknown)?;
    // Nobody is left to whom they were given.
    if instance.lifecycle.state == InstanceState::Terminated {
        return Err(Unfit::Unknown);
    }
    let caller = Caller {
        account: role.owner.clone(),
        access_key: access_key.to_owned(),
        arn: format!("arn:aws:sts::{}:assumed-role/{}/{}", role.owner, role.name, instance.id),
        user_id: format!("{}:{}", role.id, instance.id),
        role: Some(role.id.clone()),
    };
    Ok(Identity { secret: claims.secret_key(master), caller })
}

/// What an action is called in policies, such as `ec2:DescribeInstances`. The operator's own are `innkeeper:DescribeHost`
/// and so on.
pub fn permission(service: Service, action: &str) -> String {
    match action.strip_prefix("Innkeeper") {
        Some(own) if service == Service::Ec2 => format!("innkeeper:{own}"),
        _ => format!("{}:{action}", service.name()),
    }
}

/// Refuses what the caller may not do, in the words of the service that was asked. `permission` is what it is called in
/// policies.
pub fn authorise(world: &World, caller: &Caller, service: Service, permission: &str) -> Result<(), ApiError> {
    // Who one is, one may always know.
    let Some(role) = caller.role.as_ref().filter(|_| permission != "sts:GetCallerIdentity") else {
        return Ok(());
    };
    // Without the role, nothing allows anything.
    let documents = world.get::<Role>(role).into_iter().flat_map(|role| role.policies.values());
    let policies: Vec<Policy> =
        documents.map(|document| Policy::parse(document)).collect::<Result<_, _>>().map_err(|error| {
            ApiError::internal(format_args!("a policy of {role} cannot be read: {error}"))
        })?;
    let reason = match decide(&policies, permission) {
        Decision::Allowed => return Ok(()),
        Decision::NotAllowed => format!("because no identity-based policy allows the {permission} action"),
        Decision::Denied => "with an explicit deny in an identity-based policy".to_owned(),
    };
    let message = format!("User: {} is not authorized to perform: {permission} {reason}", caller.arn);
    Err(match service {
        Service::Ec2 => ApiError::new(
            "UnauthorizedOperation",
            format!("You are not authorized to perform this operation. {message}"),
        ),
        Service::Iam | Service::Sts => ApiError::new("AccessDenied", message),
    })
}
