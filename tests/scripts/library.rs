//! The client library, in front of three servers.

use acervo::cli::txn;
use acervo::client::{Client, ClientError, ReadOptions, Rows, Written, WrittenMany};
use acervo::model::Timestamp;
use bytes::Bytes;

use crate::language::{Asked, Op};
use crate::run::{Answer, BackEnd, Row, shown_lines};

use crate::servers::{BEHIND_TIMEOUT, Servers};

pub struct Library<'a>(pub &'a Servers);

impl BackEnd for Library<'_> {
    fn name(&self) -> &'static str {
        "the library"
    }

    fn ask(&mut self, op: &Op) -> Answer {
        ask(&self.0.client, op)
    }

    fn transact(&mut self, text: &str) -> Answer {
        let txn = match txn::read(&mut text.as_bytes()) {
            Ok(txn) => txn,
            Err(error) => return Answer::Error(error.to_string()),
        };
        match self.0.client.txn(txn.clone()) {
            Err(error) => Answer::Error(error.to_string()),
            Ok(done) => {
                let mut lines = Vec::new();
                txn::print_answer(&mut lines, &txn, &done).unwrap();
                Answer::Lines(shown_lines(&String::from_utf8(lines).unwrap()))
            }
        }
    }

    fn ask_behind(&mut self, op: &Op) -> Answer {
        let behind = self.0.behind.expect("the servers were started with one behind");
        let client = Client::builder([behind]).request_timeout(BEHIND_TIMEOUT).build().unwrap();
        ask(&client, op)
    }
}

fn ask(client: &Client, op: &Op) -> Answer {
    let answered = op.at().map_err(Answer::Error).and_then(|at| {
        let options = ReadOptions { at: at.map(Timestamp), ..ReadOptions::default() };
        answer(client, op, options).map_err(|error| Answer::Error(error.to_string()))
    });
    answered.map_or_else(|error| error, Answer::Rows)
}

fn answer(client: &Client, op: &Op, options: ReadOptions) -> Result<Vec<Row>, ClientError> {
    let keys = |asked: &[Asked]| asked.iter().map(|asked| asked.key.clone()).collect::<Vec<_>>();
    match op {
        Op::Get(Asked { key, .. }) => {
            let got = client.read(key, options)?;
            let held = got.found.map(|found| (found.value, found.timestamp.0));
            Ok(vec![Row::new(key.clone(), held)])
        }
        Op::GetRange(from, to) => rows(client.range(&from.key, &to.key, options)?, None),
        Op::GetAll(asked) => rows(client.get_all(keys(asked), options)?, None),
        Op::Put(key, value) => {
            let written = client.replace(key, value)?;
            let new = written.timestamp.0;
            Ok(vec![Row { new: Some(new), ..one(key, written) }])
        }
        Op::PutAll(pairs) => {
            let WrittenMany { timestamp, rows: before, .. } = client.put_all(pairs.clone())?;
            rows(before, Some(timestamp.0))
        }
        Op::Del(Asked { key, .. }) => Ok(vec![one(key, client.del(key)?)]),
        Op::DelRange(from, to) => rows(client.del_range(&from.key, &to.key)?.rows, None),
        Op::DelAll(asked) => rows(client.del_all(keys(asked))?.rows, None),
        Op::Trim(Asked { key, .. }) => Ok(vec![one(key, client.trim(key)?)]),
    }
}

fn rows(rows: Rows, new: Option<i64>) -> Result<Vec<Row>, ClientError> {
    rows.map(|row| {
        let row = row?;
        let held = row.found.map(|found| (found.value, found.timestamp.0));
        Ok(Row { new, ..Row::new(row.key, held) })
    })
    .collect()
}

fn one(key: &Bytes, written: Written) -> Row {
    Row::new(key.clone(), written.previous.map(|version| (version.value, version.timestamp.0)))
}
