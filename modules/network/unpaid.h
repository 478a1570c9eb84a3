/* SPDX-License-Identifier: GPL-2.0-only
 *
 * UNPAID_RATE: packets that nobody pays for pass uncharged, but slowly.
 *
 * A neighbour that has paid before has a token bucket of bytes of its own, for both directions together. Identities and
 * link addresses cost nothing to make, so all that never paid share one bucket of the same size. The daemon is asked
 * about first packets all the same, and a contract with data and money never comes here. Only traffic between
 * neighbours and upstream or a LAN of ours passes in this way: what goes on to another neighbour we would have to buy.
 */
#ifndef NGP_UNPAID_H
#define NGP_UNPAID_H

#include "lane.h"

/* Take room for a packet that nobody pays for. Returns 1 if it passes, 0 if it must be dropped. Not static: see
 * `serves`. */
__noinline int has_unpaid_room(const struct packet *p)
{
	const struct config *config = settings();
	struct neighbour *neighbour;
	struct lane *bucket;
	__u64 cost_ns;

	if (!config || !p || !config->unpaid_kib_ns)
		return 0;
	neighbour = find_neighbour(p);
	if (neighbour && (neighbour->flags & SHUT_OUT))
		return 0;
	bucket = lane_number(neighbour && (neighbour->flags & HAS_PAID) ? neighbour->number : NEWCOMERS_LANE);
	cost_ns = p->bytes * config->unpaid_kib_ns >> 10;
	if (!bucket || !take_token(&bucket->unpaid_ready_ns, cost_ns, config->unpaid_burst_ns, bpf_ktime_get_coarse_ns())) {
		count(UNPAID_OVER_RATE);
		return 0;
	}
	count_by(UNPAID_BYTES, p->bytes);
	return 1;
}

/* The same for a packet to a neighbour, at egress. An answer of another neighbour is a purchase of ours. A forwarded
 * packet with an address of this host as its source is forged. */
__noinline int passes_unpaid(struct __sk_buff *skb, const struct packet *p)
{
	if (!p || (class_of(skb->ingress_ifindex) & MESH) || (!p->error && is_ours(p, p->source)))
		return 0;
	return has_unpaid_room(p);
}

#endif
