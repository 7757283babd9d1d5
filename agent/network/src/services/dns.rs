//! Names (RFC 1035): those of the VPC's interfaces are answered here, all others are asked of the host's resolvers.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, PTR};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;

use super::Current;
use super::socket::{Datagram, Socket};
use crate::routes::services::DNS;

/// Where servers listen.
pub const PORT: u16 = 53;

/// How long a resolver may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a client may keep a connection on which it says nothing.
const IDLE: Duration = Duration::from_secs(10);
/// How long a connection may last, whatever is said on it.
const LIFE: Duration = Duration::from_secs(60);
/// How many questions of a VPC are asked elsewhere at once, and how many of them one address may have. Others are dropped,
/// and ask again. For connections the same.
const MAX_ASKED: usize = 512;
const MAX_ASKED_BY_ONE: usize = 32;
/// The largest datagram that a resolver may send.
const LARGEST: usize = 4096;
/// The largest datagram that we take, as we say it.
const MAX_PAYLOAD: u16 = 1232;
/// How long an answer of ours may be kept, in seconds, as EC2's.
const TTL: u32 = 60;

/// Names and addresses of a VPC. Names are in lower case, with the dot at their end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zone {
    /// The resolver's own address in the VPC; it has the link-local one too.
    pub server: Option<Ipv4Addr>,
    /// What names mean.
    pub names: BTreeMap<String, Ipv4Addr>,
    /// What addresses are called.
    pub addresses: BTreeMap<Ipv4Addr, String>,
    /// What names in here end with: one of those that is not known is not asked of anybody else.
    pub domains: Vec<String>,
}

/// Whom to ask for other names, in this order.
pub type Resolvers = Vec<SocketAddr>;

/// The resolvers in the text of a `resolv.conf`.
pub fn resolvers(text: &str) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    let addresses = servers.filter_map(|server| server.trim().parse().ok());
    addresses.map(|address| SocketAddr::new(address, PORT)).collect()
}

/// What becomes of a question.
#[derive(Debug, PartialEq)]
pub enum Found {
    /// It is answered.
    Answer(Vec<u8>),
    /// It is for somebody else.
    Elsewhere,
    /// It is none.
    Nothing,
}

/// Looks a question up.
pub fn look_up(question: &[u8], zone: &Zone) -> Found {
    let Ok(message) = Message::from_vec(question) else { return Found::Nothing };
    let metadata = &message.metadata;
    if metadata.message_type != MessageType::Query {
        return Found::Nothing;
    }
    let mut response = Message::response(metadata.id, metadata.op_code);
    response.metadata.recursion_desired = metadata.recursion_desired;
    response.metadata.recursion_available = true;
    answer_edns(&message, &mut response);
    let [query] = message.queries.as_slice() else {
        return finish(response, ResponseCode::FormErr);
    };
    response.add_query(query.clone());
    if metadata.op_code != OpCode::Query {
        return finish(response, ResponseCode::NotImp);
    }
    let name = query.name().to_lowercase();
    let text = name.to_ascii();
    if query.query_class() != DNSClass::IN {
        return Found::Elsewhere;
    }
    let reversed = reversed(&text);
    let data = match (zone.names.get(&text), reversed.and_then(|address| zone.addresses.get(&address))) {
        (Some(address), _) => Some((RecordType::A, RData::A(A(*address)))),
        (None, Some(name)) => Name::from_str(name).ok().map(|name| (RecordType::PTR, RData::PTR(PTR(name)))),
        (None, None) => None,
    };
    response.metadata.authoritative = true;
    match data {
        Some((kind, data)) => {
            let asked = query.query_type();
            if asked == kind || asked == RecordType::ANY {
                response.add_answer(Record::from_rdata(query.name().clone(), TTL, data));
            }
            finish(response, ResponseCode::NoError)
        }
        None if zone.domains.iter().any(|domain| is_within(&text, domain)) => {
            finish(response, ResponseCode::NXDomain)
        }
        None => Found::Elsewhere,
    }
}

/// Who speaks EDNS is answered so (RFC 6891 §6.1.1).
fn answer_edns(question: &Message, response: &mut Message) {
    if question.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_PAYLOAD);
        response.set_edns(edns);
    }
}

fn finish(mut response: Message, code: ResponseCode) -> Found {
    response.metadata.response_code = code;
    response.to_vec().map_or(Found::Nothing, Found::Answer)
}

fn is_within(name: &str, domain: &str) -> bool {
    !domain.is_empty() && name.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// The address that a name below `in-addr.arpa.` is about.
fn reversed(name: &str) -> Option<Ipv4Addr> {
    let digits = name.strip_suffix(".in-addr.arpa.")?;
    let mut bytes = [0; 4];
    let mut parts = digits.split('.');
    for byte in bytes.iter_mut().rev() {
        *byte = parts.next()?.parse().ok()?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(bytes))
}

/// Answers the questions of a VPC.
#[derive(Clone, Debug)]
pub(super) struct Server {
    directory: Current,
    asked: Turns,
    connections: Turns,
}

/// Turns for a VPC, of which nobody takes all.
#[derive(Clone, Debug, Default)]
struct Turns(Arc<Mutex<BTreeMap<Ipv4Addr, usize>>>);

/// A turn, which ends when it is dropped.
#[derive(Debug)]
struct Turn {
    turns: Turns,
    peer: Ipv4Addr,
}

impl Turns {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Ipv4Addr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A turn for somebody, if there is one.
    fn take(&self, peer: Ipv4Addr) -> Option<Turn> {
        let mut taken = self.lock();
        if taken.values().sum::<usize>() >= MAX_ASKED {
            return None;
        }
        let own = taken.entry(peer).or_default();
        if *own >= MAX_ASKED_BY_ONE {
            return None;
        }
        *own += 1;
        Some(Turn { turns: self.clone(), peer })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut taken = self.turns.lock();
        if let Some(own) = taken.get_mut(&self.peer) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                taken.remove(&self.peer);
            }
        }
    }
}

impl Server {
    pub(super) fn new(directory: Current) -> Self {
        Self { directory, asked: Turns::default(), connections: Turns::default() }
    }

    fn resolvers(&self) -> Resolvers {
        self.directory.borrow().resolvers.clone()
    }

    /// Answers datagrams, for ever.
    pub(super) async fn serve_datagrams(self, socket: Socket) -> io::Result<()> {
        let socket = Arc::new(socket);
        loop {
            let Datagram { bytes, peer, interface, to } = socket.receive().await?;
            match self.look_up(&bytes, to) {
                Found::Answer(answer) => socket.send(&answer, peer, interface, to),
                Found::Nothing => {}
                Found::Elsewhere => {
                    let Some(turn) = self.asked.take(*peer.ip()) else { continue };
                    let (server, socket) = (self.clone(), socket.clone());
                    tokio::spawn(async move {
                        let answer = server.ask_by_datagram(&bytes).await;
                        if let Some(answer) = answer.or_else(|| failure(&bytes)) {
                            socket.send(&answer, peer, interface, to);
                        }
                        drop(turn);
                    });
                }
            }
        }
    }

    /// Answers connections, for ever.
    pub(super) async fn serve_streams(self, listener: TcpListener) -> io::Result<()> {
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                // Of a client that is gone already, or too many files; the latter passes.
                Err(error) => {
                    tracing::debug!(%error, "a connection for names was not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let SocketAddr::V4(peer) = peer else { continue };
            let Some(turn) = self.connections.take(*peer.ip()) else { continue };
            let server = self.clone();
            tokio::spawn(async move {
                match timeout(LIFE, server.serve_stream(stream)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => tracing::debug!(%error, "a connection for names has ended"),
                    Err(_) => tracing::debug!(%peer, "a connection for names has lasted long enough"),
                }
                drop(turn);
            });
        }
    }

    async fn serve_stream(&self, mut stream: TcpStream) -> io::Result<()> {
        let SocketAddr::V4(to) = stream.local_addr()? else { return Ok(()) };
        while let Some(question) = timeout(IDLE, read(&mut stream)).await?? {
            let answer = match self.look_up(&question, *to.ip()) {
                Found::Answer(answer) => Some(answer),
                Found::Nothing => return Ok(()),
                Found::Elsewhere => self.ask_by_stream(&question).await.or_else(|| failure(&question)),
            };
            match answer {
                Some(answer) => timeout(IDLE, write(&mut stream, &answer)).await??,
                None => return Ok(()),
            }
        }
        Ok(())
    }

    fn look_up(&self, question: &[u8], to: Ipv4Addr) -> Found {
        let directory = self.directory.borrow().clone();
        match &directory.zone {
            Some(zone) if to == DNS || Some(to) == zone.server => look_up(question, zone),
            _ => Found::Nothing,
        }
    }

    async fn ask_by_datagram(&self, question: &[u8]) -> Option<Vec<u8>> {
        for resolver in self.resolvers() {
            let asked = async {
                // A port of its own for each question: nobody can guess both it and the id.
                let own: SocketAddr = match resolver {
                    SocketAddr::V4(_) => SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0).into(),
                    SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
                };
                let socket = UdpSocket::bind(own).await?;
                socket.connect(resolver).await?;
                socket.send(question).await?;
                let mut answer = vec![0; LARGEST];
                loop {
                    let length = socket.recv(&mut answer).await?;
                    if answer.get(..2) == question.get(..2) {
                        answer.truncate(length);
                        return Ok::<_, io::Error>(answer);
                    }
                }
            };
            match timeout(PATIENCE, asked).await {
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(error)) => tracing::debug!(%resolver, %error, "a resolver does not answer"),
                Err(_) => tracing::debug!(%resolver, "a resolver does not answer in time"),
            }
        }
        None
    }

    async fn ask_by_stream(&self, question: &[u8]) -> Option<Vec<u8>> {
        for resolver in self.resolvers() {
            let asked = async {
                let mut stream = TcpStream::connect(resolver).await?;
                write(&mut stream, question).await?;
                read(&mut stream).await
            };
            match timeout(PATIENCE, asked).await {
                Ok(Ok(Some(answer))) => return Some(answer),
                other => tracing::debug!(%resolver, ?other, "a resolver does not answer"),
            }
        }
        None
    }
}

/// What is said if nobody knows.
fn failure(question: &[u8]) -> Option<Vec<u8>> {
    let message = Message::from_vec(question).ok()?;
    let mut response = Message::response(message.metadata.id, message.metadata.op_code);
    response.metadata.recursion_desired = message.metadata.recursion_desired;
    response.metadata.recursion_available = true;
    response.metadata.response_code = ResponseCode::ServFail;
    answer_edns(&message, &mut response);
    response.add_queries(message.queries);
    response.to_vec().ok()
}

/// Reads a message with its length in front. None at the end.
async fn read(stream: &mut TcpStream) -> io::Result<Option<Vec<u8>>> {
    let length = match stream.read_u16().await {
        Ok(length) => length,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = vec![0; length.into()];
    stream.read_exact(&mut bytes).await?;
    Ok(Some(bytes))
}

async fn write(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    let mut message = length.to_be_bytes().to_vec();
    message.extend(bytes);
    stream.write_all(&message).await
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Query;

    use super::*;
    use crate::services::Directory;

    fn zone() -> Zone {
        let address = Ipv4Addr::new(10, 0, 0, 5);
        let name = "ip-10-0-0-5.ec2.internal.".to_owned();
        Zone {
            server: Some(Ipv4Addr::new(10, 0, 0, 2)),
            names: [(name.clone(), address), ("ec2-198-19-0-5.compute-1.amazonaws.com.".to_owned(), address)]
                .into(),
            addresses: [(address, name)].into(),
            domains: vec!["ec2.internal.".into(), "innkeeper.internal.".into()],
        }
    }

    fn ask(name: &str, kind: RecordType) -> Vec<u8> {
        let mut message = Message::query();
        message.metadata.id = 7;
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_str(name).unwrap(), kind));
        message.to_vec().unwrap()
    }

    fn answered(name: &str, kind: RecordType) -> Option<(ResponseCode, Vec<String>)> {
        match look_up(&ask(name, kind), &zone()) {
            Found::Answer(bytes) => {
                let message = Message::from_vec(&bytes).unwrap();
                assert_eq!(message.metadata.id, 7);
                let answers = message.answers.iter().map(|record| record.data.to_string());
                Some((message.metadata.response_code, answers.collect()))
            }
            Found::Elsewhere => None,
            Found::Nothing => panic!("{name}"),
        }
    }

    #[test]
    fn names_and_addresses_of_the_vpc_are_known() {
        for (name, kind, answers) in [
            ("ip-10-0-0-5.ec2.internal.", RecordType::A, vec!["10.0.0.5"]),
            ("IP-10-0-0-5.EC2.Internal.", RecordType::A, vec!["10.0.0.5"]),
            ("ip-10-0-0-5.ec2.internal.", RecordType::AAAA, vec![]),
            ("ec2-198-19-0-5.compute-1.amazonaws.com.", RecordType::A, vec!["10.0.0.5"]),
            ("5.0.0.10.in-addr.arpa.", RecordType::PTR, vec!["ip-10-0-0-5.ec2.internal."]),
        ] {
            let answers = answers.into_iter().map(str::to_owned).collect();
            assert_eq!(answered(name, kind), Some((ResponseCode::NoError, answers)), "{name}");
        }
        let unknown = Some((ResponseCode::NXDomain, vec![]));
        for name in ["ip-10-0-0-6.ec2.internal.", "innkeeper.internal.", "s3.us-east-1.innkeeper.internal."] {
            assert_eq!(answered(name, RecordType::A), unknown, "{name}");
        }
    }

    #[test]
    fn what_is_not_of_the_vpc_is_asked_elsewhere() {
        for name in ["example.com.", "notec2.internal.", "6.0.0.10.in-addr.arpa.", "0.10.in-addr.arpa."] {
            assert_eq!(answered(name, RecordType::A), None, "{name}");
        }
    }

    #[test]
    fn who_speaks_edns_is_answered_so() {
        let mut question = Message::from_vec(&ask("ip-10-0-0-5.ec2.internal.", RecordType::A)).unwrap();
        question.set_edns(Edns::new());
        let Found::Answer(answer) = look_up(&question.to_vec().unwrap(), &zone()) else { panic!() };
        assert_eq!(Message::from_vec(&answer).unwrap().edns.unwrap().max_payload(), MAX_PAYLOAD);
    }

    #[test]
    fn nobody_takes_all_turns() {
        let (turns, one) = (Turns::default(), Ipv4Addr::new(10, 0, 0, 4));
        let mut taken: Vec<Turn> = std::iter::from_fn(|| turns.take(one)).collect();
        assert_eq!(taken.len(), MAX_ASKED_BY_ONE);
        assert!(turns.take(Ipv4Addr::new(10, 0, 0, 5)).is_some());
        taken.pop();
        assert!(turns.take(one).is_some());
        drop(taken);
        assert!(turns.lock().is_empty());
    }

    #[test]
    fn what_is_no_question_is_not_answered() {
        assert_eq!(look_up(&[0; 5], &zone()), Found::Nothing);
        let mut response = ask("example.com.", RecordType::A);
        response[2] |= 0x80;
        assert_eq!(look_up(&response, &zone()), Found::Nothing);
        let failed = Message::from_vec(&failure(&ask("example.com.", RecordType::A)).unwrap()).unwrap();
        assert_eq!(failed.metadata.response_code, ResponseCode::ServFail);
    }

    #[test]
    fn resolvers_are_found_in_the_hosts_configuration() {
        let text = "# nameserver 9.9.9.9\nnameserver 10.0.0.53\n  nameserver  ::1 \nnameserver x\nsearch a\n";
        let found: Vec<String> = resolvers(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.0.0.53:53", "[::1]:53"]);
    }

    /// A server on this machine's own address that asks these resolvers.
    fn server(resolvers: Resolvers) -> Server {
        let zone = Zone { server: Some(Ipv4Addr::LOCALHOST), ..zone() };
        let directory = Directory { zone: Some(zone), resolvers, ..Directory::default() };
        // Nobody changes it any more.
        Server::new(tokio::sync::watch::channel(Arc::new(directory)).1)
    }

    /// What a resolver says: no answers, but a mark of its own.
    fn from_resolver(question: &[u8]) -> Vec<u8> {
        let mut answer = question.to_vec();
        answer.extend(b"from the resolver");
        answer
    }

    /// An address at which nobody is.
    fn nobody() -> SocketAddr {
        std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    #[tokio::test]
    async fn other_names_are_asked_of_the_first_resolver_that_answers() {
        let resolver = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let server = server(vec![nobody(), resolver.local_addr().unwrap()]);
        let question = ask("debian.org.", RecordType::A);
        let answering = async {
            let mut bytes = [0; 512];
            let (length, peer) = resolver.recv_from(&mut bytes).await.unwrap();
            let asked = &bytes[..length];
            // Somebody who guesses the port, but not the number of the question.
            let mut forged = from_resolver(asked);
            forged[0] ^= 1;
            resolver.send_to(&forged, peer).await.unwrap();
            resolver.send_to(&from_resolver(asked), peer).await.unwrap();
        };
        let (answer, ()) = tokio::join!(server.ask_by_datagram(&question), answering);
        assert_eq!(answer, Some(from_resolver(&question)));
    }

    #[tokio::test]
    async fn a_connection_takes_several_questions_of_both_kinds() {
        let resolver = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = server(vec![nobody(), resolver.local_addr().unwrap()]);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(server.serve_streams(listener));
        let resolving = tokio::spawn(async move {
            let (mut stream, _) = resolver.accept().await.unwrap();
            let asked = read(&mut stream).await.unwrap().unwrap();
            write(&mut stream, &from_resolver(&asked)).await.unwrap();
        });
        let mut stream = TcpStream::connect(address).await.unwrap();
        let (own, other) =
            (ask("ip-10-0-0-5.ec2.internal.", RecordType::A), ask("debian.org.", RecordType::A));
        for question in [&own, &other] {
            write(&mut stream, question).await.unwrap();
        }
        let answer = Message::from_vec(&read(&mut stream).await.unwrap().unwrap()).unwrap();
        assert_eq!(answer.answers.len(), 1);
        assert_eq!(read(&mut stream).await.unwrap(), Some(from_resolver(&other)));
        resolving.await.unwrap();
        // Now nobody is left to be asked.
        write(&mut stream, &other).await.unwrap();
        let answer = Message::from_vec(&read(&mut stream).await.unwrap().unwrap()).unwrap();
        assert_eq!((answer.metadata.id, answer.metadata.response_code), (7, ResponseCode::ServFail));
        // Half a question, and the end.
        stream.write_all(&[0, 40, 1, 2, 3]).await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(read(&mut stream).await.unwrap(), None);
        serving.abort();
    }
}
