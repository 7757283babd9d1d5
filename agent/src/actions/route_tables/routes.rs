//! CreateRoute, ReplaceRoute and DeleteRoute.

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::actions::lookup::{Named, find_own};
use crate::actions::network_interfaces::own;
use crate::actions::refused::{NO_IPV6, refuse};
use crate::actions::vpcs::range;
use crate::ids::{InternetGatewayId, is_well_formed};
use crate::instances::interfaces;
use crate::network::Cidr;
use crate::network::furnishing::local_route;
use crate::query::{Action, ApiError, Context};
use crate::records::{
    Instance, InternetGateway, NatGateway, NetworkInterface, Route, RouteOrigin, RouteTable, RouteTarget, Vpc,
};
use crate::state::World;

/// The most routes of a table.
const MAX_ROUTES: usize = 500;

/// Defines a request about a route, with what only that one has.
macro_rules! about_a_route {
    ($(#[$attribute:meta])* struct $name:ident { $($more:tt)* }) => {
        $(#[$attribute])*
        #[derive(Debug, Deserialize)]
        #[serde(rename_all = "PascalCase", deny_unknown_fields)]
        pub struct $name {
            route_table_id: String,
            destination_cidr_block: Option<String>,
            gateway_id: Option<String>,
            nat_gateway_id: Option<String>,
            network_interface_id: Option<String>,
            instance_id: Option<String>,
            destination_ipv6_cidr_block: Option<IgnoredAny>,
            destination_prefix_list_id: Option<IgnoredAny>,
            egress_only_internet_gateway_id: Option<IgnoredAny>,
            vpc_endpoint_id: Option<IgnoredAny>,
            transit_gateway_id: Option<IgnoredAny>,
            local_gateway_id: Option<IgnoredAny>,
            carrier_gateway_id: Option<IgnoredAny>,
            core_network_arn: Option<IgnoredAny>,
            odb_network_arn: Option<IgnoredAny>,
            vpc_peering_connection_id: Option<IgnoredAny>,
            $($more)*
        }

        impl $name {
            /// What the request asks for that there is.
            fn wish(&self) -> Result<Wish<'_>, ApiError> {
                let elsewhere = self.vpc_endpoint_id.is_some()
                    || self.transit_gateway_id.is_some()
                    || self.local_gateway_id.is_some()
                    || self.carrier_gateway_id.is_some()
                    || self.core_network_arn.is_some()
                    || self.odb_network_arn.is_some()
                    || self.vpc_peering_connection_id.is_some();
                let ipv6 =
                    self.destination_ipv6_cidr_block.is_some() || self.egress_only_internet_gateway_id.is_some();
                refuse(&[
                    (ipv6, NO_IPV6),
                    (self.destination_prefix_list_id.is_some(), NO_PREFIX_LISTS),
                    (elsewhere, "Routes of this host lead to internet gateways, NAT gateways, network interfaces and instances."),
                ])?;
                let destination = destination(self.destination_cidr_block.as_deref())?;
                let targets = [
                    self.gateway_id.as_deref().map(Target::Gateway),
                    self.nat_gateway_id.as_deref().map(Target::Nat),
                    self.network_interface_id.as_deref().map(Target::Interface),
                    self.instance_id.as_deref().map(Target::Instance),
                ];
                Ok(Wish { destination, targets: targets.into_iter().flatten().collect() })
            }
        }
    };
}

/// There are no prefix lists.
const NO_PREFIX_LISTS: &str = "This host has no prefix lists: name a DestinationCidrBlock.";

/// A route as a request describes it.
struct Wish<'r> {
    destination: Cidr,
    targets: Vec<Target<'r>>,
}

/// A target as a request names it.
#[derive(Clone, Copy)]
enum Target<'r> {
    Gateway(&'r str),
    Nat(&'r str),
    Interface(&'r str),
    Instance(&'r str),
}

about_a_route! {
    /// Adds a route to a table.
    struct CreateRoute {}
}

about_a_route! {
    /// Lets a route of a table lead elsewhere.
    struct ReplaceRoute {
        /// Whether a route to the VPC leads there again.
        #[serde(default)]
        local_target: bool,
    }
}

fn destination(text: Option<&str>) -> Result<Cidr, ApiError> {
    let text = text.ok_or_else(|| {
        ApiError::new(
            "MissingParameter",
            "The request must contain exactly one of destinationCidrBlock, destinationIpv6CidrBlock, \
             destinationPrefixListId",
        )
    })?;
    range(text, "destinationCidrBlock")
}

/// Where a route of a table leads.
fn target(
    world: &World,
    context: Context<'_>,
    table: &RouteTable,
    wish: &Wish<'_>,
) -> Result<RouteTarget, ApiError> {
    let [wanted] = wish.targets.as_slice() else {
        let message =
            "The request must contain exactly one of gatewayId, natGatewayId, networkInterfaceId, instanceId";
        return Err(match wish.targets.as_slice() {
            [] => ApiError::new("MissingParameter", message),
            _ => ApiError::combination(message),
        });
    };
    let apart = |what: &str, id: &str| {
        let message = format!("route table {} and {what} {id} belong to different networks", table.id);
        ApiError::new("InvalidParameterValue", message)
    };
    let found = match *wanted {
        Target::Gateway(id) if is_well_formed(InternetGatewayId::PREFIX, id) => {
            let gateway = find_own::<InternetGateway>(world, context, id)?;
            if gateway.vpc.as_ref() != Some(&table.vpc) {
                return Err(apart("network gateway", id));
            }
            RouteTarget::InternetGateway(gateway.id.clone())
        }
        Target::Gateway(id) => {
            let message = format!("The gateway ID '{id}' does not exist");
            return Err(ApiError::new("InvalidGatewayID.NotFound", message));
        }
        Target::Nat(id) => {
            let gateway = find_own::<NatGateway>(world, context, id)?;
            if !gateway.is_there() {
                return Err(ApiError::new(NatGateway::NOT_FOUND, NatGateway::MESSAGE.replace("{}", id)));
            }
            if gateway.vpc != table.vpc {
                return Err(apart("NAT gateway", id));
            }
            RouteTarget::NatGateway(gateway.id.clone())
        }
        Target::Interface(id) => {
            let interface = own(world, context, id)?;
            if interface.vpc != table.vpc {
                return Err(apart("interface", id));
            }
            RouteTarget::NetworkInterface(interface.id.clone())
        }
        Target::Instance(id) => {
            let instance = find_own::<Instance>(world, context, id)?;
            let all = interfaces(world, &instance.id);
            let [interface] = all.as_slice() else {
                let message = format!(
                    "There are multiple interfaces attached to instance '{id}', or none. Please specify an interface ID \
                     for the operation instead."
                );
                return Err(ApiError::new("InvalidInstanceID", message));
            };
            if world.get::<NetworkInterface>(interface).is_none_or(|found| found.vpc != table.vpc) {
                return Err(apart("instance", id));
            }
            RouteTarget::NetworkInterface(interface.clone())
        }
    };
    let vpc = find_own::<Vpc>(world, context, table.vpc.as_str())?;
    let is_inside = vpc.cidrs().any(|cidr| cidr.covers(wish.destination));
    // EC2 lets an interface take it, as a middlebox. Here what is inside is always found directly.
    if is_inside {
        let message = format!(
            "The destination CIDR block {} is equal to or more specific than one of this VPC's CIDR blocks. Such routes \
             are not supported: what is in the VPC is always reached directly.",
            wish.destination
        );
        return Err(ApiError::new("InvalidParameterValue", message));
    }
    Ok(found)
}

#[derive(Debug, Serialize)]
pub struct Created {
    #[serde(rename = "return")]
    done: bool,
}

impl CreateRoute {
    /// The table as it shall be.
    fn plan(&self, world: &World, context: Context<'_>) -> Result<RouteTable, ApiError> {
        let wish = self.wish()?;
        let mut table = RouteTable::clone(find_own::<RouteTable>(world, context, &self.route_table_id)?);
        let target = target(world, context, &table, &wish)?;
        let destination = wish.destination;
        if table.routes.iter().any(|route| route.destination == destination) {
            let message = format!("The route identified by {destination} already exists.");
            return Err(ApiError::new("RouteAlreadyExists", message));
        }
        if table.routes.len() >= MAX_ROUTES {
            let message = format!("{} has {MAX_ROUTES} routes, which is the most.", table.id);
            return Err(ApiError::new("RouteLimitExceeded", message));
        }
        table.routes.push(Route { destination, target, origin: RouteOrigin::CreateRoute });
        Ok(table)
    }
}

impl Action for CreateRoute {
    const NAME: &'static str = "CreateRoute";
    type Response = Created;

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<Created, ApiError> {
        context.agent.state.change(|draft| {
            let table = self.plan(draft, context)?;
            draft.put(table);
            Ok(Created { done: true })
        })
    }
}

impl ReplaceRoute {
    /// The table as it shall be.
    fn plan(&self, world: &World, context: Context<'_>) -> Result<RouteTable, ApiError> {
        let wish = self.wish()?;
        let destination = wish.destination;
        let mut table = RouteTable::clone(find_own::<RouteTable>(world, context, &self.route_table_id)?);
        let vpc = find_own::<Vpc>(world, context, table.vpc.as_str())?;
        let is_own = vpc.cidrs().any(|cidr| cidr == destination);
        let target = match (self.local_target, wish.targets.as_slice()) {
            (false, _) => target(world, context, &table, &wish)?,
            (true, []) if is_own => RouteTarget::Local,
            (true, []) => {
                let message = format!("The route to {destination} is no local one: leave LocalTarget out.");
                return Err(ApiError::new("InvalidParameterValue", message));
            }
            (true, _) => {
                return Err(ApiError::combination("LocalTarget cannot be used with another target."));
            }
        };
        let Some(route) = table.routes.iter_mut().find(|route| route.destination == destination) else {
            let message = format!(
                "There is no route defined for '{destination}' in the route table. Use CreateRoute instead."
            );
            return Err(ApiError::new("InvalidParameterValue", message));
        };
        match target {
            RouteTarget::Local => *route = local_route(destination),
            target => route.target = target,
        }
        Ok(table)
    }
}

impl Action for ReplaceRoute {
    const NAME: &'static str = "ReplaceRoute";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        context.agent.state.change(|draft| {
            let table = self.plan(draft, context)?;
            draft.put(table);
            Ok(())
        })
    }
}

/// Takes a route out of a table.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct DeleteRoute {
    route_table_id: String,
    destination_cidr_block: Option<String>,
    destination_ipv6_cidr_block: Option<IgnoredAny>,
    destination_prefix_list_id: Option<IgnoredAny>,
}

impl DeleteRoute {
    /// The table as it shall be.
    fn plan(&self, world: &World, context: Context<'_>) -> Result<RouteTable, ApiError> {
        refuse(&[
            (self.destination_ipv6_cidr_block.is_some(), NO_IPV6),
            (self.destination_prefix_list_id.is_some(), NO_PREFIX_LISTS),
        ])?;
        let destination = destination(self.destination_cidr_block.as_deref())?;
        let mut table = RouteTable::clone(find_own::<RouteTable>(world, context, &self.route_table_id)?);
        let Some(at) = table.routes.iter().position(|route| route.destination == destination) else {
            let message =
                format!("no route with destination-cidr-block {destination} in route table {}", table.id);
            return Err(ApiError::new("InvalidRoute.NotFound", message));
        };
        if table.routes.remove(at).origin == RouteOrigin::CreateRouteTable {
            let message = format!("cannot remove local route {destination} in route table {}", table.id);
            return Err(ApiError::new("InvalidParameterValue", message));
        }
        Ok(table)
    }
}

impl Action for DeleteRoute {
    const NAME: &'static str = "DeleteRoute";
    type Response = ();

    fn check(&self, context: Context<'_>) -> Result<(), ApiError> {
        self.plan(&context.agent.state.read(), context).map(drop)
    }

    fn run(self, context: Context<'_>) -> Result<(), ApiError> {
        context.agent.state.change(|draft| {
            let table = self.plan(draft, context)?;
            draft.put(table);
            Ok(())
        })
    }
}
