//! CreateDhcpOptions, DeleteDhcpOptions and AssociateDhcpOptions.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::item::OptionsItem;
use crate::actions::lookup::{dependency, find_own};
use crate::ids::DhcpOptionsId;
use crate::query::tags::{TagSpecification, specified_for};
use crate::query::{Action, ApiError, Context};
use crate::records::{DhcpOptions, Tags, Vpc};
use crate::state::World;

/// The most sets of an account.
const MAX_SETS: usize = 100;

/// Makes a set of options.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct CreateDhcpOptions {
    #[serde(default, rename = "DhcpConfiguration")]
    options: Vec<Configuration>,
    #[serde(default, rename = "TagSpecification")]
    tags: Vec<TagSpecification>,
}

/// `DhcpConfiguration.N`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Configuration {
    key: String,
    #[serde(default, rename = "Value")]
    values: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    dhcp_options: OptionsItem,
}

impl Configuration {
    fn check(&self) -> Result<(), ApiError> {
        let (most, fits): (usize, fn(&str) -> bool) = match self.key.as_str() {
            "domain-name-servers" => (4, |value| value == "AmazonProvidedDNS" || is_ipv4(value)),
            "ntp-servers" | "netbios-name-servers" => (4, is_ipv4),
            "domain-name" => (1, is_domain),
            "netbios-node-type" => (1, |value| matches!(value, "1" | "2" | "4" | "8")),
            other => {
                let reason = "There are domain-name-servers, domain-name, ntp-servers, netbios-name-servers and \
                              netbios-node-type.";
                return Err(ApiError::invalid(other, "dhcpConfiguration.key", reason));
            }
        };
        if self.values.is_empty() {
            return Err(ApiError::missing("dhcpConfiguration.value"));
        }
        if self.values.len() > most {
            let message = format!("{} can have at most {most} values.", self.key);
            return Err(ApiError::new("InvalidParameterValue", message));
        }
        match self.values.iter().find(|value| !fits(value)) {
            Some(value) => {
                let reason = format!("It does not fit {}.", self.key);
                Err(ApiError::invalid(value, "dhcpConfiguration.value", reason))
            }
            None => Ok(()),
        }
    }
}

fn is_ipv4(value: &str) -> bool {
    value.parse::<Ipv4Addr>().is_ok()
}

/// Domains, with spaces between them, as EC2 allows for guests that understand it.
fn is_domain(value: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b' ');
    (1..=255).contains(&value.len()) && value.bytes().all(fits)
}

impl CreateDhcpOptions {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<DhcpOptions, ApiError> {
        if self.options.is_empty() {
            return Err(ApiError::missing("dhcpConfiguration"));
        }
        let mut options: Vec<(String, Vec<String>)> = Vec::with_capacity(self.options.len());
        for option in &self.options {
            option.check()?;
            if options.iter().any(|(key, _)| *key == option.key) {
                let message = format!("{} is there twice.", option.key);
                return Err(ApiError::new("InvalidParameterValue", message));
            }
            options.push((option.key.clone(), option.values.clone()));
        }
        let owner = &context.caller.account;
        if world.all::<DhcpOptions>().filter(|options| options.owner == *owner).count() >= MAX_SETS {
            let message = format!("The maximum number of DHCP options sets has been reached: {MAX_SETS}.");
            return Err(ApiError::new("DhcpOptionsLimitExceeded", message));
        }
        Ok(DhcpOptions { id: DhcpOptionsId::random(), owner: owner.clone(), options })
    }
}

impl Action for CreateDhcpOptions {
    const NAME: &'static str = "CreateDhcpOptions";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        specified_for(&self.tags, "dhcp-options")?;
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let tags = specified_for(&self.tags, "dhcp-options")?;
        context.agent.state.change(|draft| {
            let options = self.plan(draft, context)?;
            draft.put(options.clone());
            draft.tag(&options.id, tags);
            Ok(Response { dhcp_options: OptionsItem::new(draft, &options) })
        })
    }
}

/// Deletes a set of options that no VPC has.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DeleteDhcpOptions {
    dhcp_options_id: String,
}

impl DeleteDhcpOptions {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<DhcpOptionsId, ApiError> {
        let id = &find_own::<DhcpOptions>(world, context, &self.dhcp_options_id)?.id;
        match world.all::<Vpc>().any(|vpc| vpc.dhcp_options.as_ref() == Some(id)) {
            true => Err(dependency("dhcpOptions", id)),
            false => Ok(id.clone()),
        }
    }
}

impl Action for DeleteDhcpOptions {
    const NAME: &'static str = "DeleteDhcpOptions";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        context.agent.state.change(|draft| {
            let id = self.plan(draft, context)?;
            draft.remove::<DhcpOptions>(&id);
            draft.remove::<Tags>(&id);
            Ok(())
        })
    }
}

/// Gives a set of options to a VPC, or with `default` none.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct AssociateDhcpOptions {
    dhcp_options_id: String,
    vpc_id: String,
}

impl AssociateDhcpOptions {
    /// The VPC as it shall be.
    fn plan(&self, world: &World, context: Context<'_>) -> Result<Vpc, ApiError> {
        let dhcp_options = match self.dhcp_options_id.as_str() {
            "default" => None,
            id => Some(find_own::<DhcpOptions>(world, context, id)?.id.clone()),
        };
        Ok(Vpc { dhcp_options, ..Vpc::clone(find_own::<Vpc>(world, context, &self.vpc_id)?) })
    }
}

impl Action for AssociateDhcpOptions {
    const NAME: &'static str = "AssociateDhcpOptions";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        context.agent.state.change(|draft| {
            let vpc = self.plan(draft, context)?;
            draft.put(vpc);
            Ok(())
        })
    }
}
