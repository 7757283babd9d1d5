//! The actions as clients see them: parameters in, XML or an error out, over records in memory.

mod change;
mod describe;
mod launch;

use std::ops::Deref;

use jiff::Timestamp;

use crate::actions::testing;
use crate::ids::{ImageId, SnapshotId};
use crate::instances::lifecycle::Observation;
use crate::instances::settle;
use crate::query::ApiError;
use crate::records::{
    Image, ImageState, Instance, KeyPair, MappedVolume, Mapping, NetworkInterface, Snapshot,
};
use crate::store::StoreError;

const IMAGE: &str = "ami-0123456789abcdef0";
const SNAPSHOT: &str = "snap-0123456789abcdef0";

/// A client of an agent that has an image and a key pair; another account has one too.
struct Client {
    client: testing::Client,
    account: String,
}

impl Deref for Client {
    type Target = testing::Client;

    fn deref(&self) -> &testing::Client {
        &self.client
    }
}

impl Client {
    fn new() -> Self {
        let client = testing::Client::new();
        let account = client.agent.config.account.clone();
        let client = Self { client, account };
        client.put(Snapshot {
            id: SNAPSHOT.parse().unwrap(),
            owner: client.account.clone(),
            description: String::new(),
            volume_size: 8,
            volume: None,
            started: Timestamp::UNIX_EPOCH,
            layer: crate::ids::LayerId::random(),
            state: crate::records::SnapshotState::Completed,
            completed: None,
            encrypted: false,
            create_volume_permissions: Vec::new(),
            file: None,
        });
        client.put(client.image(IMAGE));
        let (own, other) = (client.account.as_str(), "111111111111");
        for (id, owner, name) in
            [("key-0123456789abcdef0", own, "mine"), ("key-0123456789abcdef1", other, "yours")]
        {
            client.put(KeyPair {
                id: id.parse().unwrap(),
                owner: owner.into(),
                name: name.into(),
                key_type: "ed25519".into(),
                fingerprint: String::new(),
                public_key: String::new(),
                created: Timestamp::UNIX_EPOCH,
            });
        }
        client
    }

    /// An image with a root volume of 8 GiB.
    fn image(&self, id: &str) -> Image {
        Image {
            id: id.parse::<ImageId>().unwrap(),
            name: id.into(),
            description: None,
            owner: self.account.clone(),
            state: ImageState::Available,
            launch_permissions: Vec::new(),
            architecture: "x86_64".into(),
            root_device_name: "/dev/xvda".into(),
            block_devices: vec![Mapping {
                device_name: "/dev/xvda".into(),
                volume: Some(MappedVolume {
                    snapshot: Some(SNAPSHOT.parse::<SnapshotId>().unwrap()),
                    size: 8,
                    volume_type: "gp3".into(),
                    iops: None,
                    throughput: None,
                    encrypted: false,
                    delete_on_termination: true,
                }),
                virtual_name: None,
            }],
            root_store: None,
            boot: None,
            boot_mode: None,
            imds_support: None,
            location: String::new(),
            created: Timestamp::UNIX_EPOCH,
            origin: None,
            waits_for: None,
            awaited: None,
            is_copied: false,
            failure: None,
        }
    }

    /// Sends a request.
    fn call(&self, action: &str, parameters: &[(&str, &str)]) -> Result<Answer, ApiError> {
        let begin = format!("{action}&");
        let length = begin.len();
        let mut request = form_urlencoded::Serializer::for_suffix(begin, length);
        self.ask_as(&self.account, &request.extend_pairs(parameters).finish()).map(Answer)
    }

    fn code(&self, action: &str, parameters: &[(&str, &str)]) -> &'static str {
        self.call(action, parameters).map_or_else(|error| error.code, |_| "")
    }

    /// Launches one instance, with some parameters more, and has its id.
    fn launch(&self, more: &[(&str, &str)]) -> String {
        let mut parameters = vec![("ImageId", IMAGE), ("MinCount", "1"), ("MaxCount", "1")];
        parameters.extend(more);
        self.call("RunInstances", &parameters).unwrap().one("instanceId")
    }

    /// Launches one instance that runs.
    fn running(&self, more: &[(&str, &str)]) -> String {
        let id = self.launch(more);
        self.settle();
        id
    }

    fn instance(&self, id: &str) -> Instance {
        Instance::clone(self.agent.state.read().get::<Instance>(id).unwrap())
    }

    /// An instance's primary interface.
    fn interface(&self, id: &str) -> NetworkInterface {
        let instance = self.instance(id);
        NetworkInterface::clone(self.agent.state.read().get(&instance.network_interface).unwrap())
    }

    fn state(&self, id: &str) -> &'static str {
        self.instance(id).lifecycle.state.name()
    }

    /// What the actors do, at once.
    fn settle(&self) {
        let done = |draft: &mut crate::state::Draft| {
            let all: Vec<Instance> =
                draft.all::<Instance>().map(|instance| Instance::clone(instance)).collect();
            for mut instance in all {
                while let Some(step) = instance.lifecycle.step.clone() {
                    let (endings, now) = (instance.endings(), Timestamp::now());
                    let done = Observation::Done(step);
                    instance.lifecycle.observe(done.clone(), endings, now);
                    draft.put(instance.clone());
                    settle(draft, &instance, &done);
                }
            }
            Ok::<(), StoreError>(())
        };
        self.agent.state.change(done).unwrap();
    }
}

/// An answer's XML.
struct Answer(String);

impl Answer {
    /// The texts of all elements with a name.
    fn all(&self, name: &str) -> Vec<String> {
        let (open, close) = (format!("<{name}>"), format!("</{name}>"));
        let pieces = self.0.split(&open).skip(1);
        pieces.map(|piece| piece.split(&close).next().unwrap().to_owned()).collect()
    }

    /// The text of the first element with a name.
    fn one(&self, name: &str) -> String {
        self.all(name).into_iter().next().unwrap_or_else(|| panic!("no {name} in {}", self.0))
    }
}
