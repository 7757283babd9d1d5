//! `dynamic`: the identity document, by which an instance proves to others which one it is.

use serde::Serialize;

use super::{Category, FIRST, Node, View};
use crate::actions::{architecture, enabled};

/// A signature of the identity document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Signed {
    /// A bare one: RSA with SHA-256.
    Signature,
    /// PKCS #7, with DSA and SHA-1.
    Pkcs7,
    /// PKCS #7, with RSA and SHA-256.
    Rsa2048,
}

pub fn dynamic<'v>(view: View<'v>, category: Category<'v>) -> Category<'v> {
    category
        .category(FIRST, "fws", move |inside| {
            inside.text(FIRST, "instance-monitoring", move || enabled(view.instance.monitoring).to_owned())
        })
        .category(FIRST, "instance-identity", move |inside| {
            let mut inside = inside.text(FIRST, "document", move || document(view));
            for (name, kind) in
                [("signature", Signed::Signature), ("pkcs7", Signed::Pkcs7), ("rsa2048", Signed::Rsa2048)]
            {
                inside.push(name, name, Box::new(move || Some(Node::Signature(kind))));
            }
            inside
        })
}

/// The names are EC2's, in its order.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'v> {
    account_id: &'v str,
    architecture: String,
    availability_zone: &'v str,
    billing_products: Option<()>,
    devpay_product_codes: Option<()>,
    marketplace_product_codes: Option<()>,
    image_id: &'v str,
    instance_id: &'v str,
    instance_type: &'v str,
    kernel_id: Option<()>,
    pending_time: String,
    private_ip: Option<String>,
    ramdisk_id: Option<()>,
    region: &'v str,
    version: &'static str,
}

/// What the signatures are of, byte by byte. It says nothing that changes while the instance runs.
pub fn document(view: View<'_>) -> String {
    let View { world, instance, region, .. } = view;
    super::json(&Document {
        account_id: &instance.owner,
        architecture: architecture(world, instance),
        availability_zone: &instance.availability_zone,
        billing_products: None,
        devpay_product_codes: None,
        marketplace_product_codes: None,
        image_id: instance.image.as_str(),
        instance_id: instance.id.as_str(),
        instance_type: &instance.instance_type,
        kernel_id: None,
        pending_time: super::second(instance.launch_time),
        private_ip: view.primary().map(|interface| interface.primary.address.to_string()),
        ramdisk_id: None,
        region,
        version: "2017-09-30",
    })
}
