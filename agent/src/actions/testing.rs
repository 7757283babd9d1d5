//! Requests as clients send them, answered over memory: for the tests of actions.

use std::net::Ipv4Addr;

use jiff::Timestamp;

use crate::ids::{AttachmentId, ImageId, InstanceId, NetworkInterfaceId, ReservationId};
use crate::query::dispatch::{Call, Registry, Service};
use crate::query::{ApiError, Caller, Context, parameters};
use crate::records::{
    AttachmentStatus, Instance, InstanceState, InterfaceAttachment, InterfaceType, Lifecycle,
    NetworkInterface, Record, SecurityGroup, ShutdownBehavior, Subnet,
};
use crate::serve::Agent;
use crate::state::{Draft, Kept};

/// The account of the configuration.
const OWNER: &str = "000000000000";

/// A client of an agent of its own.
pub struct Client {
    pub agent: Agent,
    registry: Registry,
}

impl Client {
    pub fn new() -> Self {
        let mut registry = Registry::default();
        super::register(&mut registry);
        Self { agent: Agent::for_tests(), registry }
    }

    /// The answer to a request, such as `DescribeVpcs&Filter.1.Name=…`, as XML.
    pub fn ask(&self, request: &str) -> Result<String, ApiError> {
        self.ask_as(OWNER, request)
    }

    /// The same for any account.
    pub fn ask_as(&self, account: &str, request: &str) -> Result<String, ApiError> {
        self.ask_by(&Caller::root(account, "AKIA"), Service::Ec2, request)
    }

    /// The same for any caller and any service.
    pub fn ask_by(&self, caller: &Caller, service: Service, request: &str) -> Result<String, ApiError> {
        let text = format!("Version=2016-11-15&Action={request}");
        let call = Call::read(parameters::decode(text.as_bytes())?)?;
        let context = Context { agent: &self.agent, caller, request_id: "id", digest: &call.digest };
        self.registry.answer(service, &call, context)
    }

    /// The answer to a request to IAM.
    pub fn ask_iam(&self, request: &str) -> Result<String, ApiError> {
        self.ask_by(&Caller::root(OWNER, "AKIA"), Service::Iam, request)
    }

    /// Makes a role that EC2 may have, and an instance profile of the same name that has it.
    pub fn profile(&self, name: &str) {
        let trust = r#"{"Statement":{"Effect":"Allow","Principal":{"Service":"ec2.amazonaws.com"},
            "Action":"sts:AssumeRole"}}"#;
        let trust: String = form_urlencoded::byte_serialize(trust.as_bytes()).collect();
        for request in [
            format!("CreateRole&RoleName={name}&AssumeRolePolicyDocument={trust}"),
            format!("CreateInstanceProfile&InstanceProfileName={name}"),
            format!("AddRoleToInstanceProfile&InstanceProfileName={name}&RoleName={name}"),
        ] {
            self.ask_iam(&request).unwrap();
        }
    }

    /// Lets a role do what a statement such as `"Effect":"Allow","Action":"ec2:*"` says, of everything.
    pub fn permit(&self, role: &str, statement: &str) -> Result<String, ApiError> {
        let document = format!(r#"{{"Statement":{{{statement},"Resource":"*"}}}}"#);
        let document: String = form_urlencoded::byte_serialize(document.as_bytes()).collect();
        self.ask_iam(&format!("PutRolePolicy&RoleName={role}&PolicyName=rights&PolicyDocument={document}"))
    }

    /// What a request that succeeds has in the elements of a name.
    pub fn texts(&self, request: &str, element: &str) -> Vec<String> {
        let answer = self.ask(request).unwrap_or_else(|error| panic!("{request}: {error}"));
        let (start, end) = (format!("<{element}>"), format!("</{element}>"));
        let after = answer.split(&start).skip(1);
        after.map(|rest| rest.split(&end).next().unwrap().to_owned()).collect()
    }

    /// The same where there is one.
    pub fn text(&self, request: &str, element: &str) -> String {
        let mut texts = self.texts(request, element);
        assert_eq!(texts.len(), 1, "{request} {element}: {texts:?}");
        texts.remove(0)
    }

    /// Asserts that each request is refused with a code.
    pub fn refuses(&self, table: &[(&str, &str)]) {
        for (request, code) in table {
            match self.ask(request) {
                Ok(answer) => panic!("{request} is not refused: {answer}"),
                Err(error) => assert_eq!(error.code, *code, "{request}: {error}"),
            }
        }
    }

    /// Records something.
    pub fn put<R: Kept + Record>(&self, record: R) {
        let put = |draft: &mut Draft| {
            draft.put(record);
            Ok::<_, ApiError>(())
        };
        self.agent.state.change(put).unwrap();
    }

    /// Records an instance in this state, in the first zone and with the default group.
    pub fn instance(&self, state: InstanceState) -> InstanceId {
        let world = self.agent.state.read();
        let subnet = world.all::<Subnet>().min_by_key(|subnet| subnet.availability_zone.clone()).unwrap();
        let group = world.all::<SecurityGroup>().next().unwrap();
        let (id, interface) = (InstanceId::random(), NetworkInterfaceId::random());
        let mut lifecycle = Lifecycle::launch(Timestamp::UNIX_EPOCH);
        lifecycle.state = state;
        self.put(NetworkInterface {
            id: interface.clone(),
            owner: OWNER.into(),
            vpc: subnet.vpc.clone(),
            subnet: subnet.id.clone(),
            description: String::new(),
            mac: "02:00:00:00:00:01".into(),
            interface_type: InterfaceType::Interface,
            primary: Ipv4Addr::new(172, 31, 0, 9).into(),
            secondary: Vec::new(),
            groups: vec![group.id.clone()],
            attachment: Some(InterfaceAttachment {
                id: AttachmentId::random(),
                instance: id.clone(),
                device_index: 0,
                attached: Timestamp::UNIX_EPOCH,
                status: AttachmentStatus::Attached,
                delete_on_termination: true,
            }),
            source_dest_check: true,
            associate_public_address: false,
        });
        self.put(Instance {
            id: id.clone(),
            reservation: ReservationId::random(),
            owner: OWNER.into(),
            image: ImageId::random(),
            instance_type: "t3.micro".into(),
            launch_index: 0,
            launch_time: Timestamp::UNIX_EPOCH,
            public_key: None,
            key_name: None,
            user_data: None,
            client_token: None,
            availability_zone: subnet.availability_zone.clone(),
            vpc: subnet.vpc.clone(),
            subnet: subnet.id.clone(),
            network_interface: interface,
            root_device_name: "/dev/xvda".into(),
            block_devices: Vec::new(),
            instance_store: Vec::new(),
            boot: None,
            shutdown_behavior: ShutdownBehavior::Stop,
            disable_api_termination: false,
            disable_api_stop: false,
            ebs_optimized: false,
            monitoring: false,
            cpu_credits: None,
            metadata_options: Default::default(),
            instance_profile: None,
            lifecycle,
        });
        id
    }
}
