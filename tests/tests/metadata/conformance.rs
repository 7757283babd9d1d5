//! A table of requests and their exact answers, and a crawl of all versions of the tree.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use innkeeper_tests::agent::{REGION, STORED};
use innkeeper_tests::ec2::texts;

use super::expected::{Expected, bytes, is_token, last_word, not_so, refused, text};
use super::inn::{ACCOUNT, Inn, KEY, USER_DATA};
use super::wire::{Ask, TOKEN, TOKEN_PATH, TTL, Wire, ask, get, once, put, token};

/// All versions of the tree.
pub const VERSIONS: [&str; 26] = [
    "1.0",
    "2007-01-19",
    "2007-03-01",
    "2007-08-29",
    "2007-10-10",
    "2007-12-15",
    "2008-02-01",
    "2008-09-01",
    "2009-04-04",
    "2011-01-01",
    "2011-05-01",
    "2012-01-12",
    "2014-02-25",
    "2014-11-05",
    "2015-10-20",
    "2016-04-19",
    "2016-06-30",
    "2016-09-02",
    "2018-03-28",
    "2018-08-17",
    "2018-09-24",
    "2019-10-01",
    "2020-10-27",
    "2021-01-03",
    "2021-03-23",
    "latest",
];

/// A request, and its answer.
struct Row(Ask, Expected);

#[test]
fn every_request_has_its_answer() -> Result<()> {
    let inn = Inn::open()?;
    let tokens = Tokens::get(&inn)?;
    let mut asked = 0;
    let mut all = |rows: Vec<Row>| -> Result<()> {
        asked += rows.len();
        let failed = rows.iter().filter_map(|Row(ask, expected)| {
            let answer = match once(&inn.guest, ask) {
                Ok(answer) => answer,
                Err(error) => return Some(format!("{ask}: {error:#}")),
            };
            let error = expected.check(&answer).err()?;
            Some(format!("{ask}: {error:#}\n  expected {expected:?}\n  and not  {answer:?}"))
        });
        let failed: Vec<_> = failed.collect();
        ensure!(failed.is_empty(), "{} of {} rows:\n{}", failed.len(), rows.len(), failed.join("\n"));
        Ok(())
    };
    all(what_there_is(&inn))?;
    all(what_there_is_not(&inn))?;
    all(ways_to_write_a_path(&inn))?;
    all(methods(&inn))?;
    all(tokens_that_are_asked_for())?;
    all(forwarded(&inn, &tokens))?;
    all(what_http_itself_makes_of_it(&inn))?;
    all(with_optional_tokens(&inn, &tokens))?;
    inn.change("HttpTokens", "required")?;
    all(with_required_tokens(&inn, &tokens))?;
    inn.change("HttpEndpoint", "disabled")?;
    all(without_a_service(&tokens))?;
    inn.change("HttpTokens", "optional")?;
    inn.change("HttpEndpoint", "enabled")?;
    all(with_optional_tokens(&inn, &tokens))?;
    println!("{asked} requests have had their answers");
    ensure!(asked >= 150, "only {asked}");
    Ok(())
}

/// Tokens of all kinds.
struct Tokens {
    good: String,
    expired: String,
    foreign: String,
}

/// How long the good one is good for.
const GOOD: u32 = 21_600;

impl Tokens {
    fn get(inn: &Inn) -> Result<Self> {
        let tokens = Self {
            expired: token(&inn.guest, 1)?,
            good: token(&inn.guest, GOOD)?,
            foreign: token(&inn.stranger, GOOD)?,
        };
        std::thread::sleep(Duration::from_millis(1100));
        Ok(tokens)
    }

    /// What is no token of this instance.
    fn bad(&self) -> Vec<String> {
        let Self { good, expired, foreign } = self;
        let other_end = if good.ends_with('A') { "B" } else { "A" };
        let changed = format!("{}{other_end}", &good[..good.len() - 1]);
        let decorated =
            [format!("{good}="), format!("\"{good}\""), good.to_lowercase(), format!("{good},{good}")];
        let mut bad = vec![expired.clone(), foreign.clone(), String::new(), "x".to_owned(), changed];
        bad.push(good[1..].to_owned());
        bad.extend(decorated);
        bad
    }
}

/// Everything, with and without a slash at the end.
fn what_there_is(inn: &Inn) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut both = |path: &str, expected: Expected| {
        rows.push(Row(get(path), expected.clone()));
        rows.push(Row(get(&format!("{path}/")), expected));
    };
    rows_of_versions(&mut both);
    let mut latest = |path: &str, is: &str| both(format!("/latest/{path}").trim_end_matches('/'), text(is));

    latest("", "dynamic\nmeta-data\nuser-data");
    latest("dynamic", "fws/\ninstance-identity/");
    latest("dynamic/fws", "instance-monitoring");
    latest("dynamic/fws/instance-monitoring", "enabled");
    latest("dynamic/instance-identity", "document\npkcs7\nrsa2048\nsignature");
    latest("dynamic/instance-identity/document", &document(inn));
    let mut data = |path: &str, is: &str| latest(&format!("meta-data/{path}"), is);
    data(
        "",
        "ami-id\nami-launch-index\nami-manifest-path\nblock-device-mapping/\nevents/\nhostname\ninstance-action\n\
         instance-id\ninstance-life-cycle\ninstance-type\nlocal-hostname\nlocal-ipv4\nmac\nnetwork/\nplacement/\n\
         profile\npublic-hostname\npublic-ipv4\npublic-keys/\nreservation-id\nsecurity-groups\nservices/\ntags/",
    );
    data("ami-id", &inn.lab.image);
    data("ami-launch-index", "0");
    data("ami-manifest-path", "(unknown)");
    data("block-device-mapping", "ami\nebs1\nephemeral0\nroot");
    data("block-device-mapping/ami", &inn.own("rootDeviceName"));
    data("block-device-mapping/ebs1", "sdf");
    data("block-device-mapping/ephemeral0", "sdc");
    data("block-device-mapping/root", &inn.own("rootDeviceName"));
    data("events", "maintenance/");
    data("events/maintenance", "history\nscheduled");
    data("events/maintenance/history", "[]");
    data("events/maintenance/scheduled", "[]");
    data("hostname", &inn.own("privateDnsName"));
    data("instance-action", "none");
    data("instance-id", &inn.id);
    data("instance-life-cycle", "on-demand");
    data("instance-type", STORED);
    data("local-hostname", &inn.own("privateDnsName"));
    data("local-ipv4", &inn.own("privateIpAddress"));
    data("mac", &inn.own("macAddress"));
    data("network", "interfaces/");
    data("network/interfaces", "macs/");
    data("network/interfaces/macs", &format!("{}/", inn.own("macAddress")));
    interface(inn, &mut data);
    data("placement", "availability-zone\navailability-zone-id\nregion");
    data("placement/availability-zone", &inn.own("availabilityZone"));
    data("placement/availability-zone-id", &first(&inn.subnet, "availabilityZoneId"));
    data("placement/region", REGION);
    data("profile", "default-hvm");
    data("public-hostname", &inn.own("dnsName"));
    data("public-ipv4", &inn.elastic[0].to_string());
    data("public-keys", "0=my-public-key");
    data("public-keys/0", "openssh-key");
    data("public-keys/0/openssh-key", &inn.public_key);
    data("reservation-id", &inn.own("reservationId"));
    data("security-groups", "web\ndb");
    data("services", "domain\npartition");
    data("services/domain", "amazonaws.com");
    data("services/partition", "aws");
    data("tags", "instance/");
    data("tags/instance", &format!("{KEY}\nName"));
    data("tags/instance/Name", "an inn, \"quoted\" & größer");
    data(&format!("tags/instance/{KEY}"), "");
    both("/latest/user-data", bytes(USER_DATA));
    rows
}

fn rows_of_versions(both: &mut impl FnMut(&str, Expected)) {
    both("/", text(VERSIONS.join("\n")));
    for version in VERSIONS {
        let is =
            if version < "2009-04-04" { "meta-data\nuser-data" } else { "dynamic\nmeta-data\nuser-data" };
        both(&format!("/{version}"), text(is));
        both(&format!("/{version}/user-data"), bytes(USER_DATA));
    }
}

/// Its interface.
fn interface(inn: &Inn, data: &mut impl FnMut(&str, &str)) {
    let mac = inn.own("macAddress");
    let mut own = |path: &str, is: &str| data(&format!("network/interfaces/macs/{mac}/{path}"), is);
    own(
        "",
        "device-number\ninterface-id\nipv4-associations/\nlocal-hostname\nlocal-ipv4s\nmac\nnetwork-card\n\
         network-card-index\nowner-id\npublic-hostname\npublic-ipv4s\nsecurity-group-ids\nsecurity-groups\nsubnet-id\n\
         subnet-ipv4-cidr-block\nvpc-id\nvpc-ipv4-cidr-block\nvpc-ipv4-cidr-blocks",
    );
    own("device-number", "0");
    own("interface-id", &inn.own("networkInterfaceId"));
    let mut elastic = inn.elastic.map(|address| address.to_string());
    for (public, private) in elastic.iter().zip(inn.addresses) {
        own(&format!("ipv4-associations/{public}"), &private.to_string());
    }
    own("public-ipv4s", &elastic.join("\n"));
    elastic.sort();
    own("ipv4-associations", &elastic.join("\n"));
    own("local-hostname", &inn.own("privateDnsName"));
    own("local-ipv4s", &inn.addresses.map(|address| address.to_string()).join("\n"));
    own("mac", &mac);
    own("network-card", "0");
    own("network-card-index", "0");
    own("owner-id", ACCOUNT);
    own("public-hostname", &inn.own("dnsName"));
    own("security-group-ids", &inn.groups.join("\n"));
    own("security-groups", "web\ndb");
    own("subnet-id", &inn.own("subnetId"));
    own("subnet-ipv4-cidr-block", &first(&inn.subnet, "cidrBlock"));
    own("vpc-id", &inn.own("vpcId"));
    own("vpc-ipv4-cidr-block", &first(&inn.vpc, "cidrBlock"));
    own("vpc-ipv4-cidr-blocks", &first(&inn.vpc, "cidrBlock"));
}

fn first(answer: &str, name: &str) -> String {
    texts(answer, name).into_iter().next().unwrap_or_default()
}

/// The identity document, as EC2 writes it.
fn document(inn: &Inn) -> String {
    // Without the milliseconds.
    let launched = inn.own("launchTime").chars().take(19).collect::<String>() + "Z";
    let text = |text: &str| format!("\"{text}\"");
    let none = || "null".to_owned();
    let lines = [
        ("accountId", text(ACCOUNT)),
        ("architecture", text(&inn.own("architecture"))),
        ("availabilityZone", text(&inn.own("availabilityZone"))),
        ("billingProducts", none()),
        ("devpayProductCodes", none()),
        ("marketplaceProductCodes", none()),
        ("imageId", text(&inn.lab.image)),
        ("instanceId", text(&inn.id)),
        ("instanceType", text(STORED)),
        ("kernelId", none()),
        ("pendingTime", text(&launched)),
        ("privateIp", text(&inn.addresses[0].to_string())),
        ("ramdiskId", none()),
        ("region", text(REGION)),
        ("version", text("2017-09-30")),
    ];
    let lines = lines.map(|(name, value)| format!("  \"{name}\" : {value}"));
    format!("{{\n{}\n}}", lines.join(",\n"))
}

/// What an instance does not have, or nobody.
fn what_there_is_not(inn: &Inn) -> Vec<Row> {
    let mac = inn.own("macAddress");
    let paths = [
        "/latest/meta-data/ancestor-ami-ids",
        "/latest/meta-data/autoscaling/target-lifecycle-state",
        "/latest/meta-data/block-device-mapping/ebs2",
        "/latest/meta-data/block-device-mapping/ephemeral1",
        "/latest/meta-data/block-device-mapping/swap",
        "/latest/meta-data/elastic-gpus/",
        "/latest/meta-data/events/recommendations/rebalance",
        "/latest/meta-data/iam/info",
        "/latest/meta-data/iam/security-credentials/",
        "/latest/meta-data/ipv6",
        "/latest/meta-data/kernel-id",
        "/latest/meta-data/network/interfaces/macs/02:00:00:00:00:01/",
        "/latest/meta-data/placement/group-name",
        "/latest/meta-data/placement/host-id",
        "/latest/meta-data/placement/partition-number",
        "/latest/meta-data/product-codes",
        "/latest/meta-data/public-keys/1/",
        "/latest/meta-data/public-keys/0=my-public-key",
        "/latest/meta-data/public-keys/0/openssh-key/x",
        "/latest/meta-data/ramdisk-id",
        "/latest/meta-data/spot/instance-action",
        "/latest/meta-data/spot/termination-time",
        "/latest/meta-data/tags/instance/name",
        "/latest/meta-data/tags/volume",
        "/latest/dynamic/instance-identity/documents",
        // Other spellings, and what is in no version.
        "/LATEST/meta-data/",
        "/latest/Meta-Data/",
        "/latest/meta-data/INSTANCE-ID",
        "/latest/meta-data/instance-id/instance-id",
        "/latest/meta_data",
        "/latest/user-data/x",
        "/latest/user-dat",
        "/latest/api",
        "/latest/api/",
        "/latest/api/tokens",
        "/latest/api/token/x",
        "/meta-data/instance-id",
        "/1.00/meta-data/",
        "/2.0/",
        "/2009-04-05/",
        "/2099-01-01/meta-data/",
        "/index.html",
        "/favicon.ico",
        // Not in this version yet.
        "/1.0/dynamic/",
        "/1.0/meta-data/instance-type",
        "/2007-03-01/meta-data/instance-type",
        "/2008-09-01/dynamic/instance-identity/document",
        "/2009-04-04/meta-data/mac",
        "/2015-10-20/meta-data/events/maintenance/scheduled",
        "/2019-10-01/meta-data/placement/region",
        "/2021-01-03/meta-data/tags/instance/Name",
    ];
    let mut rows: Vec<Row> = paths.iter().map(|path| Row(get(path), refused(404))).collect();
    let ipv6 = ["ipv6s", "subnet-ipv6-cidr-blocks", "vpc-ipv6-cidr-blocks"];
    for name in ipv6 {
        let path = format!("/latest/meta-data/network/interfaces/macs/{mac}/{name}");
        rows.push(Row(get(&path), refused(404)));
    }
    let card = format!("/2020-10-27/meta-data/network/interfaces/macs/{mac}/network-card-index");
    rows.push(Row(get(&card), refused(404)));
    rows.push(Row(get(&format!("/latest{}", "/meta-data".repeat(17))), refused(404)));
    rows
}

/// What is the same path, and what is none.
fn ways_to_write_a_path(inn: &Inn) -> Vec<Row> {
    let is = |path: &str| Row(get(path), text(inn.id.as_str()));
    let is_none = |path: &str| Row(get(path), refused(404));
    vec![
        is("//latest/meta-data/instance-id"),
        is("/latest//meta-data//instance-id"),
        is("/latest///meta-data/instance-id//"),
        is("/latest/meta-data/instance%2Did"),
        is("/latest/meta-data/instance%2did"),
        is("/%6c%61%74est/meta-data/instance-id"),
        is("/latest/meta-data/instance-id?"),
        is("/latest/meta-data/instance-id?recursive=true&alt=json"),
        is("/latest/meta-data/instance-id?/../../user-data"),
        is("http://169.254.169.254/latest/meta-data/instance-id"),
        is("http://instance-data:80//latest/meta-data/instance-id/?x"),
        // A path is not resolved.
        is_none("/latest/meta-data/../meta-data/instance-id"),
        is_none("/latest/./meta-data/instance-id"),
        is_none("/../latest/meta-data/instance-id"),
        is_none("/latest/meta-data/instance-id/.."),
        is_none("/latest/%2e%2e/latest/meta-data/instance-id"),
        is_none("/latest%2Fmeta-data%2Finstance-id"),
        is_none("/latest/meta-data/instance-id%00"),
        is_none("/latest/meta-data/instance-id%20"),
        is_none("/latest/meta-data/%ff%fe"),
        is_none("/latest/meta-data/instance-id%"),
        is_none("/latest/meta-data/instance-id%zz"),
        is_none("/latest/meta-data/instance%252Did"),
        is_none("/latest/meta-data/instance-id;v=1"),
        is_none("/latest\\meta-data\\instance-id"),
        is_none("http://169.254.169.254/../latest/meta-data/instance-id"),
    ]
}

fn methods(inn: &Inn) -> Vec<Row> {
    let leaf = "/latest/meta-data/instance-id";
    let mut rows = vec![
        Row(ask("HEAD", leaf), text(inn.id.as_str()).head()),
        Row(ask("HEAD", "/"), text(VERSIONS.join("\n")).head()),
        Row(ask("HEAD", "/latest/"), text("dynamic\nmeta-data\nuser-data").head()),
        Row(ask("HEAD", "/latest/user-data"), bytes(USER_DATA).head()),
        Row(ask("HEAD", "/latest/dynamic/instance-identity/document"), text(document(inn)).head()),
        Row(ask("HEAD", "/latest/nothing"), refused(404).head()),
        Row(ask("HEAD", TOKEN_PATH), not_so("PUT").head()),
        Row(ask("HEAD", leaf).token("x"), refused(401).head()),
    ];
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "get", "head", "Get", "BREW", "COPY"]
    {
        rows.push(Row(ask(method, leaf), not_so("GET, HEAD")));
        // Whether something is there or not.
        rows.push(Row(ask(method, "/latest/nothing"), not_so("GET, HEAD")));
        if method != "PUT" {
            rows.push(Row(ask(method, TOKEN_PATH).with(TTL, "60"), not_so("PUT")));
        }
    }
    rows.push(Row(ask("GET", TOKEN_PATH), not_so("PUT")));
    rows.push(Row(ask("GET", TOKEN_PATH).with(TTL, "60"), not_so("PUT")));
    rows.push(Row(ask("put", TOKEN_PATH).with(TTL, "60"), not_so("PUT")));
    rows.push(Row(ask("OPTIONS", "*"), not_so("GET, HEAD")));
    rows.push(Row(ask("PUT", "/"), not_so("GET, HEAD")));
    rows.push(Row(
        ask("PUT", "/latest/user-data").with("Content-Length", "1").body("x"),
        not_so("GET, HEAD"),
    ));
    rows.push(Row(ask("POST", leaf).with("Content-Length", "3").body("a=b"), not_so("GET, HEAD")));
    rows
}

fn tokens_that_are_asked_for() -> Vec<Row> {
    let mut rows = Vec::new();
    for (seconds, is) in
        [("1", 1), ("60", 60), ("21599", 21_599), ("21600", 21_600), ("007", 7), (" 60 ", 60)]
    {
        rows.push(Row(put(seconds), is_token(is)));
    }
    for seconds in [
        "0",
        "21601",
        "86400",
        "-1",
        "+60",
        "1.5",
        "6e1",
        "0x3c",
        "",
        "\"60\"",
        "60s",
        "60,60",
        "6 0",
        "true",
        "4294967296",
        "4294967356",
        "18446744073709551676",
        "99999999999999999999999999",
        "\u{661}",
    ] {
        rows.push(Row(put(seconds), refused(400)));
    }
    let to = |path: &str| ask("PUT", path).with(TTL, "60");
    rows.extend([
        Row(ask("PUT", TOKEN_PATH), refused(400)),
        Row(ask("PUT", TOKEN_PATH).with(&TTL.to_uppercase(), "60"), is_token(60)),
        Row(ask("PUT", TOKEN_PATH).with(&TTL.to_lowercase(), "60"), is_token(60)),
        Row(ask("PUT", TOKEN_PATH).with(TOKEN, "60"), refused(400)),
        Row(ask("PUT", &format!("{TOKEN_PATH}?{TTL}=60")), refused(400)),
        Row(ask("PUT", TOKEN_PATH).with("Content-Length", "2").body("60"), refused(400)),
        Row(put("60").with("Content-Length", "0"), is_token(60)),
        Row(put("60").with("Content-Length", "5").body("hello"), is_token(60)),
        Row(put("60").with("Transfer-Encoding", "chunked").body("5\r\nhello\r\n0\r\n\r\n"), is_token(60)),
        Row(put("60").token("x"), is_token(60)),
        Row(to("/latest/api/token/"), is_token(60)),
        Row(to("//latest//api//token"), is_token(60)),
        Row(to("/latest/api/token?x=y"), is_token(60)),
        Row(to("http://169.254.169.254/latest/api/token"), is_token(60)),
        Row(to("/latest/api"), not_so("GET, HEAD")),
        Row(to("/latest/api/tokens"), not_so("GET, HEAD")),
        Row(to("/api/token"), not_so("GET, HEAD")),
    ]);
    for version in VERSIONS.iter().filter(|version| **version != "latest") {
        rows.push(Row(to(&format!("/{version}/api/token")), refused(403)));
    }
    rows
}

fn forwarded(inn: &Inn, tokens: &Tokens) -> Vec<Row> {
    let mut rows = Vec::new();
    for value in ["10.0.0.1", "", "unknown", "127.0.0.1, 169.254.169.254"] {
        rows.push(Row(put("60").with("X-Forwarded-For", value), refused(403)));
    }
    let forwarded = |ask: Ask| ask.with("x-forwarded-for", "10.0.0.1");
    rows.extend([
        Row(forwarded(put("60")), refused(403)),
        // Whatever else is wrong with it.
        Row(forwarded(put("0")), refused(403)),
        Row(forwarded(ask("PUT", TOKEN_PATH)), refused(403)),
        Row(put("60").with("Forwarded", "for=10.0.0.1").with("Via", "1.1 proxy"), is_token(60)),
        // As EC2: it is tokens that are not for proxies.
        Row(forwarded(get("/latest/meta-data/instance-id")), text(inn.id.as_str())),
        Row(
            forwarded(get("/latest/meta-data/instance-id")).token(&tokens.good),
            text(inn.id.as_str()).by_token(GOOD),
        ),
    ]);
    rows
}

fn with_optional_tokens(inn: &Inn, tokens: &Tokens) -> Vec<Row> {
    let leaf = || get("/latest/meta-data/instance-id");
    let is = || text(inn.id.as_str());
    let mut rows = by_tokens(inn, tokens);
    rows.push(Row(leaf(), is()));
    rows.push(Row(ask("HEAD", "/latest/meta-data/instance-id"), is().head()));
    rows.push(Row(get("/latest/nothing"), refused(404)));
    rows.push(Row(get("/latest/user-data"), bytes(USER_DATA)));
    rows
}

fn with_required_tokens(inn: &Inn, tokens: &Tokens) -> Vec<Row> {
    let mut rows = by_tokens(inn, tokens);
    for path in [
        "/",
        "/latest",
        "/latest/",
        "/1.0/meta-data/ami-id",
        "/latest/meta-data/instance-id",
        "/latest/user-data",
        "/latest/dynamic/instance-identity/document",
        "/latest/nothing",
        "/nothing",
        "/latest/meta-data/%ff",
    ] {
        rows.push(Row(get(path), refused(401)));
        rows.push(Row(ask("HEAD", path), refused(401).head()));
    }
    rows.push(Row(get("/latest/meta-data/instance-id").with(TTL, "60"), refused(401)));
    rows.push(Row(put("60"), is_token(60)));
    rows.push(Row(ask("POST", "/latest/meta-data/instance-id"), not_so("GET, HEAD")));
    rows
}

/// What is the same whether a token is required or not: who shows one is asked whether it is good.
fn by_tokens(inn: &Inn, tokens: &Tokens) -> Vec<Row> {
    let good = |ask: Ask| ask.token(&tokens.good);
    let leaf = "/latest/meta-data/instance-id";
    let is = || text(inn.id.as_str()).by_token(GOOD);
    let mut rows = vec![
        Row(good(get(leaf)), is()),
        Row(good(ask("HEAD", leaf)), is().head()),
        Row(good(get("/")), text(VERSIONS.join("\n")).by_token(GOOD)),
        Row(good(get("/1.0/meta-data/instance-id")), is()),
        Row(good(get("/latest/user-data")), bytes(USER_DATA).by_token(GOOD)),
        Row(good(get("/latest/dynamic/instance-identity/document")), text(document(inn)).by_token(GOOD)),
        Row(get(leaf).with(&TOKEN.to_lowercase(), &tokens.good), is()),
        Row(get(leaf).with(&TOKEN.to_uppercase(), &format!("  {}  ", tokens.good)), is()),
        Row(good(get("/latest/nothing")), refused(404)),
        Row(good(ask("POST", leaf)), not_so("GET, HEAD")),
        Row(ask("POST", leaf).token("x"), not_so("GET, HEAD")),
    ];
    for bad in tokens.bad() {
        rows.push(Row(get(leaf).token(&bad), refused(401)));
    }
    for path in ["/", "/latest/user-data", "/latest/nothing", "/2016-09-02/meta-data/"] {
        rows.push(Row(get(path).token(&tokens.foreign), refused(401)));
        rows.push(Row(ask("HEAD", path).token(&tokens.expired), refused(401).head()));
    }
    rows
}

/// Nothing is said to anybody.
fn without_a_service(tokens: &Tokens) -> Vec<Row> {
    let mut rows = Vec::new();
    for path in
        ["/", "/latest/", "/latest/meta-data/instance-id", "/latest/user-data", "/nothing", TOKEN_PATH]
    {
        rows.push(Row(get(path), refused(403)));
        rows.push(Row(get(path).token(&tokens.good), refused(403)));
        rows.push(Row(ask("HEAD", path), refused(403).head()));
    }
    rows.push(Row(put("60"), refused(403)));
    rows.push(Row(put("0"), refused(403)));
    rows.push(Row(put("60").with("X-Forwarded-For", "10.0.0.1"), refused(403)));
    rows.push(Row(ask("PUT", "/1.0/api/token").with(TTL, "60"), refused(403)));
    rows.push(Row(ask("POST", "/latest/"), refused(403)));
    rows.push(Row(get("/latest/").token(&tokens.foreign), refused(403)));
    rows
}

/// Who asks for nothing that is there, in ways that HTTP knows, or does not know.
fn what_http_itself_makes_of_it(inn: &Inn) -> Vec<Row> {
    let leaf = || get("/latest/meta-data/instance-id");
    let is = || text(inn.id.as_str());
    let many = |count: usize| (0..count).fold(leaf(), |ask, number| ask.with(&format!("X-{number}"), "x"));
    vec![
        Row(leaf().bare(), is()),
        Row(leaf().with("Host", "elsewhere"), is()),
        Row(leaf().with("Accept", "application/json").with("Accept-Encoding", "gzip, br"), is()),
        Row(leaf().with("Range", "bytes=0-1"), is()),
        Row(leaf().with("If-Modified-Since", "Fri, 01 Jan 2100 00:00:00 GMT"), is()),
        Row(leaf().with("Content-Length", "0"), is()),
        Row(leaf().with("X-Large", &"x".repeat(15_000)), is()),
        Row(many(60), is()),
        Row(many(64), last_word(431)),
        Row(many(1000), last_word(431)),
        Row(leaf().with("X-Huge", &"x".repeat(16 * 1024)), last_word(431)),
        Row(leaf().with(&"X".repeat(17 * 1024), "x"), last_word(431)),
        Row(get(&format!("/{}", "x".repeat(15_000))), refused(404)),
        Row(get(&format!("/{}", "x".repeat(17 * 1024))), last_word(431)),
        Row(leaf().with("X Y", "z"), last_word(400)),
        Row(leaf().with("X", "a\0b"), last_word(400)),
        Row(leaf().with("Content-Length", "-1"), last_word(400)),
        Row(leaf().with("Content-Length", "x"), last_word(400)),
        Row(leaf().with("Content-Length", "1").with("Content-Length", "2").body("xx"), last_word(400)),
        Row(leaf().with("Transfer-Encoding", "x"), last_word(400)),
        Row(ask("GET", "latest/meta-data/instance-id"), last_word(400)),
        Row(ask("GET", "/latest/meta data/"), last_word(400)),
        Row(ask("GET", ""), last_word(400)),
        Row(ask("G@T", "/"), last_word(400)),
        Row(ask("", "/"), last_word(400)),
        Row(leaf().version("HTTP/2.0"), last_word(400)),
        Row(leaf().version("HTTP/3"), last_word(400)),
        Row(leaf().version("http/1.1"), last_word(400)),
        Row(leaf().version("FTP/1.1"), last_word(400)),
    ]
}

/// Whatever is listed can be read, and what a version does not list is not there in it.
#[test]
fn whatever_is_listed_can_be_read() -> Result<()> {
    let inn = Inn::open()?;
    let mut wire = Wire::open(&inn.guest)?;
    let mut trees = Vec::new();
    for version in VERSIONS {
        let mut found = BTreeSet::new();
        for top in wire.ask(&get(&format!("/{version}")))?.text()?.lines() {
            let is_category = top != "user-data";
            crawl(&mut wire, version, top, is_category, &mut found).with_context(|| version.to_owned())?;
        }
        trees.push((version, found));
    }
    let (_, all) = trees.last().context("no versions")?.clone();
    ensure!(all.len() >= 50, "only {all:?}");
    let mut read = 0;
    for (version, found) in &trees {
        read += found.len();
        ensure!(found.is_subset(&all), "{version} has what the last one does not have");
        for path in all.difference(found) {
            let answer = wire.ask(&get(&format!("/{version}/{path}")))?;
            ensure!(answer.status == 404, "{path} is not listed in {version}: {answer:?}");
        }
    }
    println!("{read} leaves of {} versions can be read", VERSIONS.len());
    Ok(())
}

/// Reads everything below a path of a version.
fn crawl(
    wire: &mut Wire,
    version: &str,
    path: &str,
    is_category: bool,
    found: &mut BTreeSet<String>,
) -> Result<()> {
    let answer = wire.ask(&get(&format!("/{version}/{path}")))?;
    ensure!(answer.status == 200, "{path}: {answer:?}");
    if !is_category {
        ensure!(found.insert(path.to_owned()), "{path} is listed twice");
        return Ok(());
    }
    for name in answer.text()?.lines() {
        // A key is listed with its name.
        let key = name.strip_suffix("=my-public-key");
        let below = format!("{path}/{}", key.unwrap_or(name).trim_end_matches('/'));
        crawl(wire, version, &below, key.is_some() || name.ends_with('/'), found)?;
    }
    Ok(())
}
