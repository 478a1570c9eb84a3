/* SPDX-License-Identifier: GPL-2.0-only
 *
 * Flows: the side that begins a conversation pays for both of its directions.
 *
 * Where both ends of a conversation are behind neighbours of ours, or in a LAN of ours, addresses don't show who pays:
 * each of two neighbours may have bought the other's address. So the meter remembers flows with their payers: the
 * flows that a neighbour paid for on their way to the mesh or to a LAN, and the flows that our LANs send to a
 * neighbour. The answers to a remembered flow are returns: the flow's payer alone pays for them. Traffic to or from an
 * upstream interface needs no memory: the neighbour always pays.
 *
 * User space divides the table among the payers (flows.py), so each payer has a number of places. When all of them are
 * taken, a new flow takes the place of the same payer's oldest flow, so a flood makes only the flooding payer's flows
 * forgotten. A flow is also forgotten some time after its payer's last packet, whatever the other end sends. From then
 * on the contracts of both ends decide who pays.
 */
#ifndef NGP_FLOWS_H
#define NGP_FLOWS_H

#include "charge.h"

#define FLOW_NS 600000000000ull                               /* a flow is remembered for this time */
#define FLOW_REFRESH_NS 1000000000ull                         /* its time begins anew at most this often */
#define OURS 0                                                /* the payer of flows that our LANs began */
#define STRANGERS 0xffffffff                                  /* the payer of flows that unknown links began */

static __u32 our_flows, strangers_flows;

INLINE __u32 payer_of(const struct neighbour *neighbour)
{
	return neighbour ? neighbour->number : STRANGERS;
}

/* Read the flow that a packet would answer: the packet's own flow with both ends exchanged. An ICMP error counts as an
 * answer to the packet that it quotes. Not static, like the functions below: see `serves`. */
__noinline int read_answered(struct __sk_buff *skb, const struct packet *p, struct flow *flow)
{
	__be16 ports[2] = {};
	__u32 protocol;

	if (!p || !flow)
		return 0;
	protocol = p->error ? p->quoted_protocol : p->protocol;
	ports[0] = p->quoted_ports[1];
	ports[1] = p->quoted_ports[0];
	if (!has_ports(protocol))
		ports[0] = ports[1] = 0;
	else if (!p->error)
		read_ports(skb, p, ports);
	__builtin_memcpy(flow->from, p->destination, 16);
	__builtin_memcpy(flow->to, p->error ? p->quoted : p->source, 16);
	flow->from_port = ports[1];
	flow->to_port = ports[0];
	flow->protocol = protocol | (__u32)p->v6 << 8;
	return 0;
}

/* Make the flow of a packet from `answered`, the same flow with both ends exchanged. */
INLINE void turn(const struct flow *answered, struct flow *flow)
{
	__builtin_memcpy(flow->from, answered->to, 16);
	__builtin_memcpy(flow->to, answered->from, 16);
	flow->from_port = answered->to_port;
	flow->to_port = answered->from_port;
	flow->protocol = answered->protocol;
}

INLINE int is_fresh(const struct memory *memory, __u64 now)
{
	return now - memory->seen_ns < FLOW_NS || memory->seen_ns > now; /* another processor's clock may be a tick ahead */
}

/* Find out who began a flow, and store that payer's number in `payer`. Returns 0 if the payer isn't known. */
__noinline int find_payer(const struct flow *flow, __u32 *payer)
{
	struct memory *memory;
	struct flow key;

	if (!flow || !payer)
		return 0;
	key = *flow;                                              /* Linux 6.1 takes no pointer from an argument as a key */
	memory = bpf_map_lookup_elem(&ngp_flows, &key);
	if (!memory || !is_fresh(memory, now_ns()))
		return 0;
	*payer = memory->place.payer;
	return 1;
}

/* Make room in one of a payer's places, each of which holds one flow: forget the flow that was noted there, unless that
   flow has moved to another payer or place after it was noted. */
APART int make_room(const struct place *place)
{
	struct flow *held = bpf_map_lookup_elem(&ngp_places, place), old;
	struct memory *memory;

	if (!held)
		return 0;
	old = *held;
	memory = bpf_map_lookup_elem(&ngp_flows, &old);
	if (memory && memory->place.payer == place->payer && memory->place.number == place->number)
		bpf_map_delete_elem(&ngp_flows, &old);
	return 0;
}

/* Remember who began the flow of a packet: the packet's sender, or (with `ours`) one of our LANs. `answered` is the
 * packet's flow with both ends exchanged, as read_answered gives it. */
__noinline int remember(const struct packet *p, const struct flow *answered, int ours)
{
	const struct config *config = settings();
	struct neighbour *neighbour;
	struct memory *memory, fresh = {};
	struct flow flow;
	__u32 *number, bits;
	__u64 now = now_ns();

	if (!config || !p || !answered || p->error || p->protocol == LATER_FRAGMENT)
		return 0;
	turn(answered, &flow);
	memory = bpf_map_lookup_elem(&ngp_flows, &flow);
	neighbour = ours ? 0 : find_neighbour(p);
	number = ours ? &our_flows : neighbour ? &neighbour->flows : &strangers_flows;
	bits = neighbour && !(neighbour->flags & HAS_PAID) ? config->flows_on_grace_bits : config->flows_bits;
	fresh.place.payer = ours ? OURS : payer_of(neighbour);
	if (memory && memory->place.payer == fresh.place.payer) {
		if (now - memory->seen_ns > FLOW_REFRESH_NS)
			memory->seen_ns = now;
		return 0;
	}
	fresh.place.number = __sync_fetch_and_add(number, 1) & ((1u << (bits & 15)) - 1);
	make_room(&fresh.place);
	if (bpf_map_update_elem(&ngp_places, &fresh.place, &flow, BPF_ANY))
		return 0;
	fresh.seen_ns = now;
	bpf_map_update_elem(&ngp_flows, &flow, &fresh, BPF_ANY);
	return 0;
}

#endif
