// SPDX-License-Identifier: Apache-2.0

/** The version of Dynamo whose interfaces this is; clients and agents that ask for a version get it. */
export const DYNAMO_VERSION = "1.6.1";
