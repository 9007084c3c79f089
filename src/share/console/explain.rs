//! Explains errors to the console's user, in the console's language.
//!
//! Rule: sentences from other machines are English, so they go to the log, and the console gets a
//! sentence of its own.

use crate::client::greeting::{REFUSED, describe};
use crate::limits;
use crate::model::NameError;
use crate::net::ListenError;
use crate::prompt::{explain_io, explain_reason, is_misdirected};
use crate::share::fetch::{FetchError, FindError, KeptPart};
use crate::share::folder::FolderError;
use crate::share::registry_client::RegistryCallError;
use crate::text::{counted, escape, sentence};
use crate::wire::share::DenialCode;

pub(super) fn explain_name(error: NameError) -> String {
    match error {
        NameError::Empty => "um nome de arquivo não pode ser vazio".to_owned(),
        NameError::TooLong(length) => {
            let max = limits::FILE_NAME_BYTES_MAX;
            format!("um nome de arquivo tem no máximo {max} bytes, e este tem {length}")
        }
        NameError::Separator(found) => {
            format!("um nome de arquivo não pode ter \"{}\"", found.escape_default())
        }
        NameError::Control => "um nome de arquivo não pode ter caracteres de controle".to_owned(),
        NameError::Reserved => "este nome é reservado pelo sistema".to_owned(),
        NameError::Partial => "nomes que terminam em .part são de arquivos incompletos".to_owned(),
    }
}

pub(super) fn explain_registry_error(error: &RegistryCallError) -> String {
    match error {
        RegistryCallError::Unreachable { address, reason } => {
            format!("Registro {address} inacessível: {}.", explain_reason(reason))
        }
        RegistryCallError::Unanswered { address, reason } => {
            format!("Registro {address} não responde: {}.", explain_reason(reason))
        }
        RegistryCallError::Declined { address, message } => {
            // The registry's sentence is English.
            log::info!("registry {address} refuses: {message}");
            format!("Registro {address} recusou: {}.", explain_refusal(message))
        }
        RegistryCallError::Refused { address, reason }
            if is_misdirected(&format!("{REFUSED}{reason}")) =>
        {
            let who = explain_reason(&format!("{REFUSED}{reason}"));
            format!("Registro {address} inacessível: {who}; confira o endereço.")
        }
        RegistryCallError::Refused { address, reason } => {
            log::info!("registry {address} refuses: {reason}");
            format!("Registro {address} recusou: {}.", explain_refusal(reason))
        }
        RegistryCallError::IdTaken(address) => format!(
            "Outra conexão entrou no registro {address} com a identidade desta pasta: se ela é \
             compartilhada duas vezes, pare uma delas."
        ),
        RegistryCallError::NotJoined(address) => {
            format!("Registro {address} não conhece este peer.")
        }
        RegistryCallError::Forgotten(address) => format!(
            "Registro {address} aceitou este peer e logo não o conhecia mais: se há vários neste \
             endereço, eles precisam de um armazenamento em comum."
        ),
        RegistryCallError::Wrong { address, reason } => {
            // It quotes what was received, and is English.
            log::info!("registry {address}: {reason}");
            format!("Registro {address} não responde como um registro: confira o endereço.")
        }
        RegistryCallError::Nobody => "Nenhum registro foi dado.".to_owned(),
        RegistryCallError::Stopping => "Este peer está parando.".to_owned(),
    }
}

/// Translates a registry's refusal, as far as a person can do something about it.
fn explain_refusal(message: &str) -> &'static str {
    let known = [
        (
            "no peer answers at",
            "ele não alcança este peer no endereço dado; dê um IP pelo qual o alcance",
        ),
        (
            "cannot serve on a loopback address",
            "este peer e o registro estão em máquinas diferentes; dê o IP pelo qual os outros o \
             alcançam",
        ),
        ("cannot serve on port 0", "um peer não atende na porta 0"),
        ("a peer offers at most", "a pasta tem arquivos demais"),
        ("a shared file has at most", "um arquivo da pasta é grande demais"),
        ("joined from this IP address", "há peers demais com o IP deste"),
        ("the peers of one IP address", "os peers com este IP já oferecem tudo o que podem"),
        ("no room for", "ele está cheio; tente mais tarde"),
        ("try again in a moment", "ele está ocupado"),
        (
            "the store behind this registry",
            "os servidores em que ele guarda o índice não respondem",
        ),
    ];
    let found = known.iter().find(|(part, _)| message.contains(part));
    found.map_or("ele não aceita o pedido", |(_, why)| why)
}

pub(super) fn explain_folder(error: &FolderError) -> String {
    match error {
        FolderError::Unreadable { path, source } => {
            format!("a pasta {} não pode ser lida ({})", path.display(), explain_io(source))
        }
        FolderError::InUse(path) => {
            format!("a pasta {} já é compartilhada por outro processo", path.display())
        }
    }
}

/// The remark on entries of the folder that are not offered.
pub(super) fn explain_left_out(number: usize) -> String {
    let what = counted(number as u64, "item da pasta ficou", "itens da pasta ficaram");
    format!("{what} de fora: só entram arquivos comuns e completos, diretamente na pasta.")
}

/// The remark on files that are still to be hashed.
pub(super) fn explain_hashing(files: u64) -> String {
    match files {
        1 => "Falta ler 1 arquivo: ele será oferecido assim que estiver lido.".to_owned(),
        files => {
            format!("Faltam ler {files} arquivos: cada um será oferecido assim que estiver lido.")
        }
    }
}

pub(super) fn explain_listen(error: &ListenError) -> String {
    match error {
        ListenError::InUse(address) => format!("a porta {} já está em uso", address.port()),
        ListenError::NotHere(address) => format!("{} não é um IP desta máquina", address.ip()),
        ListenError::Denied(address) => format!("não é permitido usar a porta {}", address.port()),
        ListenError::Other { address, source } => {
            format!("não é possível usar {address}: {}", explain_io(source))
        }
    }
}

pub(super) fn explain_find(error: &FindError) -> String {
    match error {
        FindError::Unreachable { address, source } => {
            format!("o peer {address} não responde ({})", explain_reason(&describe(source)))
        }
        FindError::Refused { address, code, reason } => {
            // The peer's sentence is English.
            log::info!("{address} refuses: {}", sentence(reason));
            match code {
                Some(DenialCode::NotFound) => format!("o peer {address} não tem este arquivo"),
                Some(DenialCode::Changed) => format!("o arquivo do peer {address} mudou"),
                Some(DenialCode::Unreadable) => {
                    format!("o peer {address} não consegue ler o arquivo")
                }
                Some(DenialCode::Busy) => format!("o peer {address} está ocupado"),
                Some(DenialCode::Invalid | DenialCode::Cancelled) => {
                    format!("o peer {address} não aceita o pedido")
                }
                None => format!("{address} não responde como um peer que pode atender agora"),
            }
        }
        FindError::Protocol(address) => format!("{address} não responde como um peer"),
    }
}

/// The end of a sentence on a failed download.
fn explain_kept(kept: KeptPart) -> &'static str {
    if kept.0 { "; o que chegou fica guardado" } else { "" }
}

pub(super) fn explain_fetch(error: &FetchError) -> String {
    match error {
        FetchError::Exists(path) => {
            format!("{} já existe e é outro arquivo", path.display())
        }
        FetchError::UnderWay(path) => format!("{} já está sendo baixado", path.display()),
        FetchError::Folder { path, source } => {
            format!("não é possível escrever em {} ({})", path.display(), explain_io(source))
        }
        FetchError::NoRoom { needed, free, .. } => {
            let free = counted(*free, "byte livre", "bytes livres");
            format!(
                "não há espaço: falta gravar {}, e há {free}",
                counted(*needed, "byte", "bytes")
            )
        }
        FetchError::NotSoLarge { size, .. } => {
            format!("o disco, ou o limite do processo, não aceita arquivos de {size} bytes")
        }
        FetchError::NoSource { last, kept, .. } => {
            log::info!("{}", escape(last.as_bytes()));
            format!("o peer não o enviou até o fim{}", explain_kept(*kept))
        }
        FetchError::NoSize { last, .. } => {
            log::info!("{}", escape(last.as_bytes()));
            "nenhum peer prova o tamanho deste arquivo".to_owned()
        }
        FetchError::Gone { kept, .. } => {
            format!("o peer não tem mais este arquivo{}", explain_kept(*kept))
        }
        FetchError::ForeignPart(path) => {
            format!("{} não é parte deste arquivo: tire-o do caminho", path.display())
        }
        FetchError::PartGone(path) => {
            format!("{} foi removido durante o download", path.display())
        }
        FetchError::Touched(path) => {
            format!("outro programa não para de alterar {}", path.display())
        }
        FetchError::Disk { path, source, kept } => {
            let why = explain_io(source);
            format!("{} não pôde ser gravado ({why}){}", path.display(), explain_kept(*kept))
        }
        FetchError::Cancelled(kept) => format!("interrompido{}", explain_kept(*kept)),
        FetchError::TooLarge { size, .. } => {
            format!("um arquivo compartilhado não pode ter {}", counted(*size, "byte", "bytes"))
        }
        FetchError::Internal { reason, kept, .. } => {
            log::error!("a download cannot go on: {}", escape(reason.as_bytes()));
            format!("este programa não pôde continuar{}", explain_kept(*kept))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::greeting::NOT_IN_TIME;
    use std::io;

    #[test]
    fn only_one_is_singular() {
        let items = [0, 1, 2].map(explain_left_out);
        assert!(items[0].starts_with("0 itens da pasta ficaram de fora"), "{items:?}");
        assert!(items[1].starts_with("1 item da pasta ficou de fora"), "{items:?}");
        assert!(items[2].starts_with("2 itens da pasta ficaram de fora"), "{items:?}");
        let left = [1, 2].map(explain_hashing);
        assert!(left[0].starts_with("Falta ler 1 arquivo: ele será"), "{left:?}");
        assert!(left[1].starts_with("Faltam ler 2 arquivos: cada um será"), "{left:?}");
    }

    /// Sentences from others and from the system are English, and a line has one language.
    #[test]
    fn a_line_of_the_console_is_in_one_language() {
        let address = "10.0.0.1:5000".parse().unwrap();
        let reason = "there is no file peq.txt here".to_owned();
        let refused = |code| FindError::Refused { address, code, reason: reason.clone() };
        assert_eq!(
            explain_find(&refused(Some(DenialCode::NotFound))),
            "o peer 10.0.0.1:5000 não tem este arquivo"
        );
        assert!(!explain_find(&refused(None)).contains("there is"));
        let declined = |message: &str| {
            let message = message.to_owned();
            explain_registry_error(&RegistryCallError::Declined { address, message })
        };
        assert_eq!(
            declined("too many requests wait at this registry: try again in a moment"),
            "Registro 10.0.0.1:5000 recusou: ele está ocupado."
        );
        assert_eq!(
            declined("whatever it may say"),
            "Registro 10.0.0.1:5000 recusou: ele não aceita o pedido."
        );
        let refused = |reason: &str| {
            let reason = reason.to_owned();
            explain_registry_error(&RegistryCallError::Refused { address, reason })
        };
        assert_eq!(
            refused("this is a server of a store: a share needs an acervo registry"),
            "Registro 10.0.0.1:5000 inacessível: ali responde um servidor do acervo, e não um \
             registro; confira o endereço."
        );
        assert_eq!(
            refused("this is a peer of a share and no registry: check the address"),
            "Registro 10.0.0.1:5000 inacessível: ali responde um peer, e não um registro; confira \
             o endereço."
        );
        let reason = NOT_IN_TIME.to_owned();
        assert_eq!(
            explain_registry_error(&RegistryCallError::Unanswered { address, reason }),
            "Registro 10.0.0.1:5000 não responde: nenhuma resposta completa chegou a tempo."
        );
        let source = || io::Error::from_raw_os_error(5);
        let path = std::path::PathBuf::from("/x");
        let folder = FolderError::Unreadable { path: path.clone(), source: source() };
        assert_eq!(explain_folder(&folder), "a pasta /x não pode ser lida (erro 5 do sistema)");
        let needed = FetchError::NoRoom { path, needed: 1, free: 2, kept: KeptPart(false) };
        assert_eq!(
            explain_fetch(&needed),
            "não há espaço: falta gravar 1 byte, e há 2 bytes livres"
        );
    }
}
