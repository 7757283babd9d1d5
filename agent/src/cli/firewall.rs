//! Other firewalls on the host: those that drop what is forwarded keep instances from the world, whatever our own rules
//! say, as every firewall has to let a packet pass.

use std::collections::BTreeMap;
use std::process::Command;

/// A chain that drops what is forwarded unless a rule of it says otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Barrier {
    /// The family and the name of its table, such as `ip filter`.
    pub table: String,
    /// Its name.
    pub chain: String,
    /// Whose it is.
    pub owner: Owner,
}

/// Who makes such chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    Docker,
    Ufw,
    Firewalld,
    Unknown,
}

impl Owner {
    /// What to do about it.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Docker => {
                "Docker lets nothing else through: iptables -I DOCKER-USER -i vpc+ -j ACCEPT && iptables -I DOCKER-USER -o \
                 vpc+ -j ACCEPT"
            }
            Self::Ufw => {
                "ufw forwards nothing: set DEFAULT_FORWARD_POLICY=\"ACCEPT\" in /etc/default/ufw, then ufw reload"
            }
            Self::Firewalld => {
                "firewalld forwards nothing between zones: firewall-cmd --permanent --zone=trusted \
                 --add-source=POOL, with the configuration's public-addresses for POOL, then firewall-cmd --reload"
            }
            Self::Unknown => "let it accept what comes from and goes to the interfaces vpc*",
        }
    }
}

/// The barriers of this host, as nftables has them, which is also where today's iptables put theirs.
pub fn barriers() -> Result<Vec<Barrier>, String> {
    let output = Command::new("nft").args(["list", "ruleset"]).output();
    let output = output.map_err(|error| format!("cannot run nft (the package nftables has it): {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!(
            "nft cannot list the rules: {} (run as root)",
            said.lines().next().unwrap_or_default()
        ));
    }
    Ok(find(&String::from_utf8_lossy(&output.stdout)))
}

/// The barriers in the text of a ruleset. Those that let `vpc*` through by a rule of their own are none.
fn find(ruleset: &str) -> Vec<Barrier> {
    let mut barriers = Vec::new();
    let (mut table, mut chain) = (String::new(), String::new());
    // By table: who lets through what comes from us, and what goes to us.
    let mut lets_through: BTreeMap<String, (bool, bool)> = BTreeMap::new();
    for line in ruleset.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("table ") {
            table = name.trim_end_matches([' ', '{']).to_owned();
        } else if let Some(name) = line.strip_prefix("chain ") {
            chain = name.trim_end_matches([' ', '{']).to_owned();
        } else if line.contains("hook forward") && line.contains("policy drop") {
            let owner = owner(ruleset, &table);
            barriers.push(Barrier { table: table.clone(), chain: chain.clone(), owner });
        } else if line.ends_with("accept") {
            let (from, to) = lets_through.entry(table.clone()).or_default();
            *from |= line.contains("iifname \"vpc*\"");
            *to |= line.contains("oifname \"vpc*\"");
        }
    }
    barriers.retain(|barrier| lets_through.get(&barrier.table) != Some(&(true, true)));
    // firewalld's chain has a rule at its end in place of a policy.
    if let Some(rules) = ruleset.split("chain filter_FORWARD {").nth(1)
        && rules.split("\n\t}").next().is_some_and(|rules| rules.contains("reject"))
    {
        barriers.push(Barrier {
            table: "inet firewalld".to_owned(),
            chain: "filter_FORWARD".to_owned(),
            owner: Owner::Firewalld,
        });
    }
    barriers
}

fn owner(ruleset: &str, table: &str) -> Owner {
    match table {
        "inet firewalld" => Owner::Firewalld,
        "ip filter" | "ip6 filter" if ruleset.contains("chain DOCKER-USER") => Owner::Docker,
        "ip filter" | "ip6 filter" if ruleset.contains("chain ufw-") => Owner::Ufw,
        _ => Owner::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(more: &str, rule: &str) -> String {
        format!(
            "table ip filter {{\n{more}\tchain FORWARD {{\n\t\ttype filter hook forward priority filter; policy \
             drop;\n{rule}\t}}\n}}\ntable inet innkeeper {{\n\tchain forward {{\n\t\ttype filter hook forward \
             priority filter - 10; policy accept;\n\t}}\n}}\n"
        )
    }

    #[test]
    fn who_stands_in_the_way_is_named() {
        for (more, owner) in [
            ("\tchain DOCKER-USER {\n\t}\n", Owner::Docker),
            ("\tchain ufw-user-forward {\n\t}\n", Owner::Ufw),
            ("", Owner::Unknown),
        ] {
            let expected = Barrier { table: "ip filter".into(), chain: "FORWARD".into(), owner };
            assert_eq!(find(&filter(more, "")), [expected]);
        }
        let firewalld = "table inet firewalld {\n\tchain filter_FORWARD {\n\t\ttype filter hook forward priority filter \
                         + 10; policy accept;\n\t\tct state { established, related } accept\n\t\treject with icmpx \
                         admin-prohibited\n\t}\n}\n";
        let found = find(firewalld);
        assert_eq!(found.iter().map(|barrier| barrier.owner).collect::<Vec<_>>(), [Owner::Firewalld]);
    }

    #[test]
    fn who_lets_us_through_does_not() {
        assert_eq!(find(""), []);
        let docker = "\tchain DOCKER-USER {\n\t}\n";
        let (from, to) = ("\t\tiifname \"vpc*\" counter accept\n", "\t\toifname \"vpc*\" counter accept\n");
        assert_eq!(find(&filter(docker, &format!("{from}{to}"))), []);
        // One direction is not enough.
        assert_eq!(find(&filter(docker, from)).len(), 1);
    }
}
