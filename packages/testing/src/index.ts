// SPDX-License-Identifier: Apache-2.0
// Private to this project: everything is behind the inner door.
export {};
