//! Errors that the console's user can do something about, in the console's language.

use crate::client::connection::describe;
use crate::limits;
use crate::net::ListenError;
use crate::prompt::explain_reason;
use crate::share::fetch::{FetchError, FindError};
use crate::share::folder::FolderError;
use crate::share::line::LineError;
use crate::share::names::NameError;
use crate::text::escape;

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

pub(super) fn explain_line(error: &LineError) -> String {
    match error {
        LineError::Unreachable { address, reason } => {
            format!("Registro {address} inacessível: {}.", explain_reason(reason))
        }
        LineError::Declined { address, message } => {
            format!("Registro {address} recusou e diz: \"{}\".", message.trim_end_matches('.'))
        }
        LineError::NotJoined(address) => format!("Registro {address} não conhece este peer."),
        LineError::Unexpected => {
            "O registro não responde como um registro: confira o endereço.".to_owned()
        }
        LineError::Nobody => "Nenhum registro foi dado.".to_owned(),
        LineError::Stopping => "Este peer está parando.".to_owned(),
    }
}

pub(super) fn explain_folder(error: &FolderError) -> String {
    match error {
        FolderError::Unreadable { path, source } => {
            format!("a pasta {} não pode ser lida ({source})", path.display())
        }
        FolderError::InUse(path) => {
            format!("a pasta {} já é compartilhada por outro processo", path.display())
        }
    }
}

/// That so many things in the folder are not offered.
pub(super) fn explain_left_out(number: usize) -> String {
    let what = match number {
        1 => "1 item da pasta ficou".to_owned(),
        number => format!("{number} itens da pasta ficaram"),
    };
    format!("{what} de fora: só entram arquivos comuns e completos, diretamente na pasta.")
}

/// That so many files are still to be hashed.
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
            format!("não é possível usar {address}: {source}")
        }
    }
}

pub(super) fn explain_find(error: &FindError) -> String {
    match error {
        FindError::Unreachable { address, source } => {
            format!("o peer {address} não responde ({})", explain_reason(&describe(source)))
        }
        FindError::Refused { address, reason } => {
            let reason = escape(reason.as_bytes()).to_string();
            format!("o peer {address} recusou: \"{}\"", reason.trim_end_matches('.'))
        }
        FindError::Protocol(address) => format!("{address} não responde como um peer"),
    }
}

pub(super) fn explain_fetch(error: &FetchError) -> String {
    match error {
        FetchError::Exists(path) => {
            format!("{} já existe e é outro arquivo", path.display())
        }
        FetchError::UnderWay(path) => format!("{} já está sendo baixado", path.display()),
        FetchError::Folder { path, source } => {
            format!("não é possível escrever em {} ({source})", path.display())
        }
        FetchError::NoRoom { needed, free, .. } => {
            format!("não há espaço: são necessários {needed} bytes e há {free} livres")
        }
        FetchError::NotSoLarge { size, .. } => {
            format!("o disco, ou o limite do processo, não aceita arquivos de {size} bytes")
        }
        FetchError::NoSource { last, .. } => {
            let last = escape(last.as_bytes());
            format!("o peer não o enviou (\"{last}\"); o que chegou fica guardado")
        }
        FetchError::ForeignPart(path) => {
            format!("{} não é parte deste arquivo: tire-o do caminho", path.display())
        }
        FetchError::PartGone(path) => {
            format!("{} foi removido durante o download", path.display())
        }
        FetchError::Cancelled => "interrompido; o que chegou fica guardado".to_owned(),
        other => format!("\"{}\"", escape(other.to_string().as_bytes())),
    }
}
