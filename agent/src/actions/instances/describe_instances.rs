//! DescribeInstances.

use serde::{Deserialize, Serialize};

use super::filters::Seen;
use super::named::named;
use super::view::{Interfaces, Reservation, reservation};
use crate::query::filters::{Filter, Selection};
use crate::query::pages::page;
use crate::query::{Action, ApiError, Context};
use crate::records::Instance;

/// The caller's instances, by reservation.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DescribeInstances {
    #[serde(default, rename = "InstanceId")]
    ids: Vec<String>,
    #[serde(default, rename = "Filter")]
    filters: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
    /// There are none.
    #[serde(default, rename = "IncludeManagedResources")]
    _include_managed_resources: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    reservation_set: Vec<Reservation>,
    next_token: Option<String>,
}

/// Ids and pages do not go together.
pub fn no_pages_of_ids(ids: &[String], max_results: Option<i64>) -> Result<(), ApiError> {
    if !ids.is_empty() && max_results.is_some() {
        let message = "The parameter instancesSet cannot be used with the parameter maxResults";
        return Err(ApiError::combination(message));
    }
    Ok(())
}

impl Action for DescribeInstances {
    const NAME: &'static str = "DescribeInstances";
    type Response = Response;

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        no_pages_of_ids(&self.ids, self.max_results)?;
        let world = context.agent.state.read();
        let wanted = Selection::new(&self.filters)?;
        let instances: Vec<_> = if self.ids.is_empty() {
            world.all::<Instance>().filter(|instance| instance.owner == context.caller.account).collect()
        } else {
            named(&world, context, &self.ids)?
        };
        let interfaces = Interfaces::new(&world);
        // A key that keeps reservations together, in their order.
        let mut seen: Vec<(String, Seen<'_>)> = instances
            .into_iter()
            .map(|instance| Seen::new(&world, context, &interfaces, instance))
            .filter(|seen| wanted.accepts(seen))
            .map(|seen| {
                let instance = seen.instance;
                (format!("{}/{:06}/{}", instance.reservation, instance.launch_index, instance.id), seen)
            })
            .collect();
        seen.sort_by(|one, other| one.0.cmp(&other.0));
        let (seen, next_token) = page(seen, |(key, _)| key, self.max_results, self.next_token.as_deref(), 5)?;
        let reservation_set = seen
            .chunk_by(|(_, one), (_, other)| one.instance.reservation == other.instance.reservation)
            .filter_map(|chunk| {
                let id = chunk.first()?.1.instance.reservation.to_string();
                let instances = chunk.iter().map(|(_, seen)| seen.instance);
                Some(reservation(&world, context, &interfaces, id, instances))
            })
            .collect();
        Ok(Response { reservation_set, next_token })
    }
}
