//! RevokeSecurityGroupIngress and RevokeSecurityGroupEgress.

use serde::{Deserialize, Serialize};

use super::permissions::{Allowed, IpPermission, gather};
use super::request::about_rules;
use super::{in_default_vpc, no_rule, spread_all};
use crate::query::{Action, ApiError, Context};
use crate::records::{Peer, Rule, SecurityGroup, Tags};
use crate::state::World;

/// Takes away rules about what comes in.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub struct RevokeSecurityGroupIngress(Request);

/// Takes away rules about what goes out.
#[derive(Debug, Deserialize)]
#[serde(transparent)]
pub struct RevokeSecurityGroupEgress(Request);

about_rules! {
    /// Rules are called by their ids, or by what they allow.
    struct Request {
        #[serde(default, rename = "SecurityGroupRuleId")]
        rule_ids: Vec<String>,
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    #[serde(rename = "return")]
    done: bool,
    unknown_ip_permission_set: Vec<IpPermission>,
    revoked_security_group_rule_set: Vec<Revoked>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Revoked {
    security_group_rule_id: String,
    group_id: String,
    is_egress: bool,
    ip_protocol: String,
    from_port: i32,
    to_port: i32,
    cidr_ipv4: Option<String>,
    cidr_ipv6: Option<String>,
    prefix_list_id: Option<String>,
    referenced_group_id: Option<String>,
    description: Option<String>,
}

impl Revoked {
    fn new(group: &SecurityGroup, rule: &Rule) -> Self {
        let mut revoked = Self {
            security_group_rule_id: rule.id.to_string(),
            group_id: group.id.to_string(),
            is_egress: rule.is_egress,
            ip_protocol: rule.protocol.clone(),
            from_port: rule.from_port.unwrap_or(-1),
            to_port: rule.to_port.unwrap_or(-1),
            cidr_ipv4: None,
            cidr_ipv6: None,
            prefix_list_id: None,
            referenced_group_id: None,
            description: rule.description.clone(),
        };
        let (place, peer) = match &rule.peer {
            Peer::Ipv4(cidr) => (&mut revoked.cidr_ipv4, cidr.clone()),
            Peer::Ipv6(cidr) => (&mut revoked.cidr_ipv6, cidr.clone()),
            Peer::PrefixList(id) => (&mut revoked.prefix_list_id, id.clone()),
            Peer::Group(id) => (&mut revoked.referenced_group_id, id.to_string()),
        };
        *place = Some(peer);
        revoked
    }
}

/// What is to be done.
struct Plan {
    /// As it was.
    group: SecurityGroup,
    /// What goes.
    gone: Vec<Rule>,
    /// What was to go and is not there.
    unknown: Vec<Rule>,
}

impl Request {
    fn plan(&self, world: &World, context: Context<'_>, is_egress: bool) -> Result<Plan, ApiError> {
        let group = self.group(world, context)?;
        let permissions = self.permissions(is_egress)?;
        let rules = || group.rules.iter().filter(|rule| rule.is_egress == is_egress);
        let mut plan = Plan { group: SecurityGroup::clone(group), gone: Vec::new(), unknown: Vec::new() };
        match (permissions.is_empty(), self.rule_ids.is_empty()) {
            (true, true) => return Err(ApiError::missing("ipPermissions or securityGroupRuleId")),
            (false, false) => {
                let message = "IpPermissions cannot be used with SecurityGroupRuleId.";
                return Err(ApiError::combination(message));
            }
            (true, false) => {
                for id in &self.rule_ids {
                    let rule = rules().find(|rule| rule.id.as_str() == id).ok_or_else(|| no_rule(id))?;
                    // Who names a rule twice wants it gone once.
                    if !plan.gone.iter().any(|gone| gone.id == rule.id) {
                        plan.gone.push(rule.clone());
                    }
                }
            }
            (false, true) => {
                for (allowed, description) in spread_all(world, context, group, &permissions)? {
                    match rules().find(|rule| Allowed::of(rule) == allowed) {
                        Some(rule) => plan.gone.push(rule.clone()),
                        None => plan.unknown.push(allowed.into_rule(is_egress, description)),
                    }
                }
            }
        }
        // So EC2 documents it: in a default VPC the answer tells of them, elsewhere it is an error.
        if !plan.unknown.is_empty() && !in_default_vpc(world, group) {
            let message = "The specified rule does not exist in this security group.";
            return Err(ApiError::new("InvalidPermission.NotFound", message));
        }
        Ok(plan)
    }

    fn run(&self, context: Context<'_>, is_egress: bool) -> Result<Response, ApiError> {
        context.agent.state.change(|draft| {
            let plan = self.plan(draft, context, is_egress)?;
            for rule in &plan.gone {
                draft.remove::<Tags>(&rule.id);
            }
            draft.update(&plan.group.id, |group: &mut SecurityGroup| {
                group.rules.retain(|rule| !plan.gone.iter().any(|gone| gone.id == rule.id));
            });
            Ok(Response {
                done: true,
                unknown_ip_permission_set: gather(&plan.group.owner, plan.unknown.iter()),
                revoked_security_group_rule_set: plan
                    .gone
                    .iter()
                    .map(|rule| Revoked::new(&plan.group, rule))
                    .collect(),
            })
        })
    }
}

impl Action for RevokeSecurityGroupIngress {
    const NAME: &'static str = "RevokeSecurityGroupIngress";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.0.plan(&context.agent.state.read(), context, false).map(|_| ())
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        self.0.run(context, false)
    }
}

impl Action for RevokeSecurityGroupEgress {
    const NAME: &'static str = "RevokeSecurityGroupEgress";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.0.plan(&context.agent.state.read(), context, true).map(|_| ())
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        self.0.run(context, true)
    }
}
