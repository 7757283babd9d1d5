//! DescribeInstanceCreditSpecifications.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::describe_instances::no_pages_of_ids;
use super::named::named;
use crate::query::filters::{Field, Filter, Filtered, Selection};
use crate::query::pages::page;
use crate::query::{Action, ApiError, Context};
use crate::records::{Instance, InstanceState};

/// The CPU credits of burstable instances: without ids, only of those that are not limited by them.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DescribeInstanceCreditSpecifications {
    #[serde(default, rename = "InstanceId")]
    ids: Vec<String>,
    #[serde(default, rename = "Filter")]
    filters: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    instance_credit_specification_set: Vec<Item>,
    next_token: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Item {
    instance_id: String,
    cpu_credits: String,
}

/// What was chosen, or what its type has without a choice.
fn cpu_credits(instance: &Instance) -> &str {
    let of_type = if instance.instance_type.starts_with("t2.") { "standard" } else { "unlimited" };
    instance.cpu_credits.as_deref().unwrap_or(of_type)
}

impl Filtered for Item {
    fn field(name: &str) -> Option<Field<Self>> {
        match name {
            "instance-id" => Some(|item| vec![item.instance_id.clone()]),
            _ => None,
        }
    }

    fn tags(&self) -> Option<&BTreeMap<String, String>> {
        None
    }
}

impl Action for DescribeInstanceCreditSpecifications {
    const NAME: &'static str = "DescribeInstanceCreditSpecifications";
    type Response = Response;

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        no_pages_of_ids(&self.ids, self.max_results)?;
        let world = context.agent.state.read();
        let wanted = Selection::new(&self.filters)?;
        let credits = |instance: &Instance| {
            let kind = context.agent.catalogue.get(&instance.instance_type)?;
            let cpu_credits = kind.burstable.then(|| cpu_credits(instance).to_owned())?;
            Some(Item { instance_id: instance.id.to_string(), cpu_credits })
        };
        let mut items: Vec<Item> = if self.ids.is_empty() {
            world
                .all::<Instance>()
                .filter(|instance| instance.owner == context.caller.account)
                .filter(|instance| instance.lifecycle.state != InstanceState::Terminated)
                .filter_map(|instance| credits(instance))
                .filter(|item| item.cpu_credits == "unlimited")
                .collect()
        } else {
            let named = named(&world, context, &self.ids)?.into_iter();
            named
                .map(|instance| {
                    credits(instance).ok_or_else(|| {
                        let (id, kind) = (&instance.id, &instance.instance_type);
                        let message =
                            format!("The instance '{id}' has type {kind}, which has no CPU credits.");
                        ApiError::new("InvalidParameterValue", message)
                    })
                })
                .collect::<Result<_, _>>()?
        };
        items.retain(|item| wanted.accepts(item));
        items.sort_by(|one, other| one.instance_id.cmp(&other.instance_id));
        let (instance_credit_specification_set, next_token) =
            page(items, |item| &item.instance_id, self.max_results, self.next_token.as_deref(), 5)?;
        Ok(Response { instance_credit_specification_set, next_token })
    }
}
