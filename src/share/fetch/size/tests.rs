//! Proofs of a size by sources that lie in every way.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use super::*;
use crate::limits::{CHUNK_BYTES, HASHES_PER_FRAME_MAX};
use crate::model::PeerId;
use crate::share::content::Manifest;
use crate::share::greeting;
use crate::wire::codec;
use crate::wire::message::Message;

/// How a source answers when it is asked for a proof.
#[derive(Clone, Copy, Debug)]
enum Trick {
    Honest,
    /// It greets and sends nothing more.
    Silent,
    /// It sends a byte of its page now and then.
    Dribble,
    /// It sends full pages for ever.
    Endless,
    /// It announces a frame that is too long.
    Huge,
    /// It sends the hashes of the nodes above the chunks, which give the same id, and then a chunk.
    Nodes,
    /// It sends the whole list, and then another chunk.
    WrongChunk,
    /// It sends the whole list, and a last chunk that is too short.
    ShortChunk,
    /// It sends the whole list and nothing more.
    NoChunk,
}

fn receive(stream: &mut TcpStream) -> Option<Message> {
    let mut header = [0; 4];
    stream.read_exact(&mut header).ok()?;
    let mut body = vec![0; u32::from_be_bytes(header) as usize];
    stream.read_exact(&mut body).ok()?;
    codec::decode(&body).ok()
}

/// Answers on one connection until the other side ends it.
fn answer(stream: &mut TcpStream, trick: Trick, manifest: &Manifest, bytes: &[u8]) -> Option<()> {
    receive(stream)?;
    stream.write_all(&greeting::frame(&greeting::welcome(Some(PeerId(1)))).unwrap()).ok()?;
    loop {
        let Message::Share { id, body } = receive(stream)? else { return None };
        let (body, raw) = match (body, trick) {
            (_, Trick::Silent) => continue,
            (PeerRequest::Hashes { .. }, Trick::Huge) => {
                stream.write_all(&[0xff; 64]).ok()?;
                continue;
            }
            (PeerRequest::Hashes { .. }, Trick::Endless) => {
                let hashes = vec![ChunkHash([7; 32]); HASHES_PER_FRAME_MAX];
                (PeerReply::Hashes { hashes }, &[][..])
            }
            (PeerRequest::Hashes { .. }, Trick::Nodes) => {
                let (left, right) = manifest.chunks().split_at(2);
                let hashes = vec![subtree_hash(left), subtree_hash(right)];
                (PeerReply::Hashes { hashes }, &[][..])
            }
            (PeerRequest::Hashes { first, .. }, _) => {
                let hashes = manifest.chunks()[first as usize..].to_vec();
                (PeerReply::Hashes { hashes }, &[][..])
            }
            (PeerRequest::Chunk { .. }, Trick::NoChunk) => continue,
            (PeerRequest::Chunk { index, .. }, trick) => {
                let piece = bytes.chunks(CHUNK_BYTES).nth(index as usize).unwrap();
                let piece = match trick {
                    Trick::WrongChunk => &bytes[..piece.len()],
                    Trick::ShortChunk => &piece[..piece.len() - 1],
                    _ => piece,
                };
                (PeerReply::Chunk { length: piece.len() as u32 }, piece)
            }
            other => panic!("{other:?}"),
        };
        let frame = greeting::frame(&Message::ShareReply { id, body }).unwrap();
        if matches!(trick, Trick::Dribble) {
            // Between two bytes it waits for the other side to give it up.
            stream.set_read_timeout(Some(Duration::from_millis(20))).ok()?;
            for byte in frame {
                stream.write_all(&[byte]).ok()?;
                if matches!(stream.read(&mut [0; 64]), Ok(0)) {
                    return None;
                }
            }
            stream.set_read_timeout(None).ok()?;
            continue;
        }
        stream.write_all(&frame).and_then(|()| stream.write_all(raw)).ok()?;
    }
}

fn bytes() -> Vec<u8> {
    let mut bytes = vec![0; 3 * CHUNK_BYTES + 4321];
    blake3::Hasher::new().update(b"size").finalize_xof().fill(&mut bytes);
    bytes
}

/// Sources that announce a wrong size, each of which plays its trick.
fn sources(tricks: &[Trick]) -> (Manifest, Vec<Source>) {
    let bytes = Arc::new(bytes());
    let manifest = Manifest::of_bytes(&bytes).unwrap();
    let start = |trick: &Trick| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, content) = (listener.local_addr().unwrap(), manifest.content());
        let (trick, manifest, bytes) = (*trick, manifest.clone(), Arc::clone(&bytes));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (manifest, bytes) = (manifest.clone(), Arc::clone(&bytes));
                thread::spawn(move || answer(&mut stream.unwrap(), trick, &manifest, &bytes));
            }
        });
        Source { peer: PeerId(1), address, size: 77, content }
    };
    let sources = tricks.iter().map(start).collect();
    (manifest, sources)
}

fn prove(tricks: &[Trick], patience: Duration) -> Result<Source, FetchError> {
    let (manifest, sources) = sources(tricks);
    let (name, content) = (FileName::new("a").unwrap(), manifest.content());
    let stop = Arc::default();
    prove_size(SizeOptions { name, content, sources, patience, stop }, Vec::new)
}

const LIARS: [Trick; 8] = [
    Trick::Silent,
    Trick::Dribble,
    Trick::Endless,
    Trick::Huge,
    Trick::Nodes,
    Trick::WrongChunk,
    Trick::ShortChunk,
    Trick::NoChunk,
];

#[test]
fn one_honest_source_among_liars_of_every_kind_proves_the_size() {
    let mut tricks = [LIARS, LIARS, LIARS].concat();
    tricks.push(Trick::Honest);
    let proved = prove(&tricks, Duration::from_secs(60)).unwrap();
    assert_eq!(proved.size, bytes().len() as u64);
}

#[test]
fn no_false_size_is_ever_proved() {
    let error = prove(&LIARS, Duration::from_millis(2500)).unwrap_err();
    assert!(matches!(error, FetchError::NoSize { .. }), "{error:?}");
}

/// Once it was said that no peer gave the file any more, of which none had been asked for a byte. A
/// peer may send any reason, which is cut and shown within one sentence.
#[test]
fn a_size_that_nobody_proves_is_told_in_one_sentence() {
    let error = prove(&[Trick::Silent], Duration::from_secs(2)).unwrap_err();
    let FetchError::NoSize { last, .. } = &error else { panic!("{error:?}") };
    assert!(last.ends_with(": it does not answer in time"), "{last}");
    let told = format!(
        "the peers that have a tell several sizes of it, and none proves its own ({last}); try \
         again later"
    );
    assert_eq!(error.to_string(), told);

    let reason = format!("\x1b[2J{}", "no ".repeat(100_000));
    let shown = DialogueError::Denied(reason).to_string();
    assert!(shown.starts_with(r"\x1b[2Jno no "), "{shown}");
    assert!(shown.len() <= limits::REASON_BYTES_MAX, "{} bytes", shown.len());
}

#[test]
fn a_source_that_is_added_later_is_asked_and_a_stop_ends_the_question() {
    let (manifest, mut sources) = sources(&[Trick::Silent, Trick::Honest]);
    let honest = sources.pop();
    let (name, content) = (FileName::new("a").unwrap(), manifest.content());
    let patience = Duration::from_secs(60);
    let stop: Arc<AtomicBool> = Arc::default();
    let options = SizeOptions { name, content, sources, patience, stop: Arc::clone(&stop) };
    let proved = prove_size(options.clone(), move || honest.iter().cloned().collect()).unwrap();
    assert_eq!(proved.size, manifest.size());

    stop.store(true, Ordering::Relaxed);
    let stopped = prove_size(options, Vec::new).unwrap_err();
    assert!(matches!(stopped, FetchError::Cancelled(_)));
}

/// A manifest of so many chunks, without the content's bytes.
fn manifest_of(count: u64) -> Manifest {
    let hashes = (0..count).map(|i| ChunkHash(*blake3::hash(&i.to_le_bytes()).as_bytes()));
    Manifest::new(count * CHUNK_BYTES as u64, hashes.collect()).unwrap()
}

#[test]
fn a_list_is_complete_when_it_yields_the_content_id() {
    let page = HASHES_PER_FRAME_MAX as u64;
    for count in [1, 2, 3, page - 1, page, page + 1, 2 * page, 2 * page + 1, 3 * page + 7, 5 * page]
    {
        let manifest = manifest_of(count);
        let mut list = ListProof::new(manifest.content());
        let pages = manifest.chunks().chunks(HASHES_PER_FRAME_MAX);
        let ends = pages.map(|page| list.take(page)).collect::<Vec<_>>();
        let (last, before) = ends.split_last().unwrap();
        assert_eq!(*last, PageVerdict::Whole(count, *manifest.chunks().last().unwrap()));
        let mores = (1..).map(|at| PageVerdict::More(at * page)).take(before.len());
        assert!(mores.eq(before.iter().map(|listed| match listed {
            PageVerdict::More(next) => PageVerdict::More(*next),
            other => panic!("{other:?}"),
        })));
    }
}

#[test]
fn a_false_or_endless_list_is_given_up() {
    let manifest = manifest_of(10);
    for wrong in [&manifest.chunks()[..0], &manifest.chunks()[..9], &manifest.chunks()[1..]] {
        assert_eq!(ListProof::new(manifest.content()).take(wrong), PageVerdict::Wrong);
    }
    let mut list = ListProof::new(manifest.content());
    assert_eq!(list.take(&vec![ChunkHash([1; 32]); HASHES_PER_FRAME_MAX + 1]), PageVerdict::Wrong);
    let page = vec![ChunkHash([1; 32]); HASHES_PER_FRAME_MAX];
    let mut list = ListProof::new(manifest.content());
    let pages = chunk_count(limits::FILE_BYTES_MAX) / HASHES_PER_FRAME_MAX as u64;
    for at in 1..=pages {
        assert_eq!(list.take(&page), PageVerdict::More(at * HASHES_PER_FRAME_MAX as u64));
    }
    assert_eq!(list.take(&page), PageVerdict::Wrong);
}
