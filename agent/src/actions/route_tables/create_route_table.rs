//! CreateRouteTable and DeleteRouteTable.

use serde::{Deserialize, Serialize};

use super::item::RouteTableItem;
use crate::actions::lookup::{dependency, find, find_own};
use crate::ids::RouteTableId;
use crate::network::furnishing::route_table;
use crate::query::idempotency::{recall, remember};
use crate::query::tags::{TagSpecification, specified_for};
use crate::query::{Action, ApiError, Context};
use crate::records::{RouteTable, Tags, Vpc};
use crate::state::World;

/// The most route tables of a VPC.
const MAX_TABLES: usize = 200;

/// Makes a route table that no subnet uses yet.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct CreateRouteTable {
    vpc_id: String,
    client_token: Option<String>,
    #[serde(default, rename = "TagSpecification")]
    tags: Vec<TagSpecification>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    route_table: RouteTableItem,
    client_token: Option<String>,
}

impl CreateRouteTable {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<RouteTable, ApiError> {
        let vpc = find_own::<Vpc>(world, context, &self.vpc_id)?;
        if world.all::<RouteTable>().filter(|table| table.vpc == vpc.id).count() >= MAX_TABLES {
            let message =
                format!("The maximum number of route tables of a VPC has been reached: {MAX_TABLES}.");
            return Err(ApiError::new("RouteTableLimitExceeded", message));
        }
        Ok(route_table(vpc))
    }

    fn answer(&self, world: &World, table: &RouteTable) -> Response {
        Response { route_table: RouteTableItem::new(world, table), client_token: self.client_token.clone() }
    }
}

impl Action for CreateRouteTable {
    const NAME: &'static str = "CreateRouteTable";
    type Response = Response;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        specified_for(&self.tags, "route-table")?;
        let world = context.agent.state.read();
        match recall(&world, context, Self::NAME, self.client_token.as_deref())? {
            Some(_) => Ok(()),
            None => self.plan(&world, context).map(drop),
        }
    }

    fn run(self, context: Context<'_>) -> Result<Response, ApiError> {
        let tags = specified_for(&self.tags, "route-table")?;
        let token = self.client_token.as_deref();
        context.agent.state.change(|draft| {
            if let Some(earlier) = recall(draft, context, Self::NAME, token)? {
                return Ok(self.answer(draft, find::<RouteTable>(draft, context, &earlier)?));
            }
            let table = self.plan(draft, context)?;
            remember(draft, context, Self::NAME, token, &table.id);
            draft.tag(&table.id, tags);
            draft.put(table.clone());
            Ok(self.answer(draft, &table))
        })
    }
}

/// Deletes a route table that nothing uses.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DeleteRouteTable {
    route_table_id: String,
}

impl DeleteRouteTable {
    fn plan(&self, world: &World, context: Context<'_>) -> Result<RouteTableId, ApiError> {
        let table = find_own::<RouteTable>(world, context, &self.route_table_id)?;
        match table.associations.is_empty() {
            true => Ok(table.id.clone()),
            false => Err(dependency("routeTable", &table.id)),
        }
    }
}

impl Action for DeleteRouteTable {
    const NAME: &'static str = "DeleteRouteTable";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        context.agent.state.change(|draft| {
            let table = self.plan(draft, context)?;
            draft.remove::<RouteTable>(&table);
            draft.remove::<Tags>(&table);
            Ok(())
        })
    }
}
