//! Transactions, and what they come to when they are carried out plainly.

use acervo::model;

#[path = "../support/transactions.rs"]
mod transactions;

pub use transactions::{State, TxnMaker, bits, carry_out, deletions, kept_ranges};
