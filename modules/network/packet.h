/* SPDX-License-Identifier: GPL-2.0-only
 *
 * Parsing a packet: its link, addresses and bytes on the wire, the packet that an ICMP error quotes, and, on demand,
 * ports.
 *
 * Bytes are layer-3 bytes on the wire. A superpacket (GSO, GRO) counts as the segments that it stands for: each segment
 * after the first repeats the headers. In FORWARD the kernel has trimmed the packet to its IP length. At an interface's
 * hooks a short frame still has Ethernet's padding, which isn't counted.
 */
#ifndef NGP_PACKET_H
#define NGP_PACKET_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include "meter.h"

enum hook { FORWARD, EGRESS, INGRESS, TUNNEL };                /* TUNNEL: at FORWARD, from or to the landlord's tunnel */

struct ipv4 {
	__u8 version_words, tos;
	__be16 bytes, id, fragment;
	__u8 ttl, protocol;
	__be16 checksum;
	__u32 source, destination;
};
struct ipv6 {
	__u32 flow;
	__be16 payload_bytes;
	__u8 next, hops;
	__u32 source[4], destination[4];
};
struct frame {
	__u16 unused;                                             /* aligns the IP header to four bytes */
	__u16 to[3], from[3];
	__be16 type;
	union { struct ipv4 v4; struct ipv6 v6; } ip;
};

struct packet {
	struct link link;                                         /* the neighbour at the other end of this hop; zero: a tenant */
	__u32 source[4], destination[4];                          /* IPv4: the first word */
	__u32 bytes;
	__u32 base, transport;                                    /* offsets: of the IP header; of the transport header behind it */
	__u8 v6, protocol;                                        /* 255: a later fragment, which has no transport header */
	__u8 error;                                               /* an ICMP error; `quoted`: destination of the packet in it */
	__u8 group;                                               /* sent to a group address of the link; unknown at FORWARD */
	__u32 quoted[4];
	__be16 quoted_ports[2];                                   /* source, destination */
	__u8 quoted_protocol;
	__u8 goes_on;                                             /* the first of several fragments */
	__be16 sent_port;                                         /* the port it was sent to, if this host rewrote it; else 0 */
	__u32 number;                                             /* of a fragment: the id of its packet, as the sender set it */
};

#define LATER_FRAGMENT 255
#define ERROR_BYTES 1280                                      /* the longest ICMP error (RFC 4443, 2.4 c) */

INLINE int is_extension(__u8 next)
{
	return next == IPPROTO_HOPOPTS || next == IPPROTO_ROUTING || next == IPPROTO_FRAGMENT || next == IPPROTO_DSTOPTS;
}

/* Skip up to six extension headers of IPv6. A packet with more of them shows us no ports and no ICMP error. */
APART int skip_extensions(struct __sk_buff *skb, struct packet *p)
{
	__u32 at = p->transport;
	__u8 next = p->protocol;

	for (int i = 0; i < 6; i++) {
		struct { __u8 next, words; __be16 fragment; __u32 number; } h;

		if (!is_extension(next))
			break;
		if (bpf_skb_load_bytes(skb, p->base + at, &h, sizeof(h)))
			break;
		if (next == IPPROTO_FRAGMENT) {
			p->number = h.number;
			if (h.fragment & bpf_htons(0xfff8)) {
				next = LATER_FRAGMENT;
				break;
			}
			p->goes_on |= !!(h.fragment & bpf_htons(1));
			at += 8;
		} else {
			at += (h.words + 1) * 8;
		}
		next = h.next;
	}
	p->transport = at;
	p->protocol = next;
	return 0;
}

/* Read the packet that an ICMP error quotes. Such errors (unreachable, too big, time exceeded) may come from any router
 * on the way. So an error belongs to the conversation of the packet that it quotes, whatever its source is. */
APART int read_error(struct __sk_buff *skb, struct packet *p)
{
	__u32 at = p->base + p->transport;
	__u8 type;

	if (bpf_skb_load_bytes(skb, at, &type, 1))
		return 0;
	at += 8;
	if (p->v6) {
		struct ipv6 ip;

		if (type < 1 || type > 4 || bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)))
			return 0;
		__builtin_memcpy(p->quoted, ip.destination, 16);
		p->quoted_protocol = ip.next;
		at += sizeof(ip);
	} else {
		struct ipv4 ip;

		if ((type != 3 && type != 4 && type != 5 && type != 11 && type != 12) ||
		    bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)))
			return 0;
		p->quoted[0] = ip.destination;
		p->quoted_protocol = ip.fragment & bpf_htons(0x1fff) ? LATER_FRAGMENT : ip.protocol;
		at += (ip.version_words & 15) * 4;
	}
	p->error = 1;
	if (p->quoted_protocol == LATER_FRAGMENT || bpf_skb_load_bytes(skb, at, p->quoted_ports, 4))
		p->quoted_ports[0] = p->quoted_ports[1] = 0;
	return 0;
}

#define GRE_FIELD(flags, bit) ((flags) & bpf_htons(bit) ? 4 : 0)

/* Return the IP protocol number (IPv4 or IPv6 in IP) for an EtherType in a tunnelled frame or a GRE header; 0 for other
 * EtherTypes. */
INLINE __u8 protocol_of(__be16 type)
{
	return type == bpf_htons(ETH_P_IP) ? IPPROTO_IPIP : type == bpf_htons(ETH_P_IPV6) ? IPPROTO_IPV6 : 0;
}

/* VXLAN and Geneve, recognised by their ports, carry a frame behind the UDP header. Move `at` to the IP packet in this
 * frame, and return its protocol number as `protocol_of` does; 0 if there is no IP packet. */
INLINE __u8 frame_in_udp(struct __sk_buff *skb, __u32 base, __u32 *at)
{
	struct { __be16 from, to, bytes, checksum; __u8 flags, reserved; __be16 type; } h;
	__be16 type;

	if (bpf_skb_load_bytes(skb, base + *at, &h, sizeof(h)))
		return 0;
	if (h.to == bpf_htons(6081))
		*at += (h.flags & 63) * 4;
	else if (h.to != bpf_htons(4789) && h.to != bpf_htons(8472))
		return 0;
	*at += 16 + ETH_HLEN;
	return bpf_skb_load_bytes(skb, base + *at - 2, &type, 2) ? 0 : protocol_of(type);
}

/* Return the bytes of headers that each segment of a superpacket repeats. Tunnelled traffic is cut into segments inside
 * the tunnel, so each segment repeats the inner headers as well. */
__noinline __u32 repeated_bytes(struct __sk_buff *skb, const struct packet *p)
{
	__u32 base = p ? p->base : 0, at = p ? p->transport : 0; /* not static: see serves */
	__u8 protocol = p ? p->protocol : 0, first;

	for (int i = 0; i < 4; i++) {
		struct { __be16 flags, type; } gre;
		__u32 in_udp = at;
		__u8 next;

		if (protocol == IPPROTO_TCP) {
			first = 0x50;
			bpf_skb_load_bytes(skb, base + at + 12, &first, 1);
			return at + (first >> 4) * 4;
		} else if (protocol == IPPROTO_UDP) {
			protocol = frame_in_udp(skb, base, &in_udp);
			if (!protocol)
				return at + 8;
			at = in_udp;
		} else if (protocol == IPPROTO_GRE) {
			if (bpf_skb_load_bytes(skb, base + at, &gre, sizeof(gre)))
				return at;
			at += 4 + GRE_FIELD(gre.flags, 0x8000) + GRE_FIELD(gre.flags, 0x2000) + GRE_FIELD(gre.flags, 0x1000);
			if (gre.type == bpf_htons(ETH_P_TEB)) {
				at += ETH_HLEN;
				if (bpf_skb_load_bytes(skb, base + at - 2, &gre.type, 2))
					return at;
			}
			protocol = protocol_of(gre.type);
		} else if (protocol == IPPROTO_IPIP) {
			if (bpf_skb_load_bytes(skb, base + at, &first, 1) || bpf_skb_load_bytes(skb, base + at + 9, &next, 1))
				return at;
			at += (first & 15) * 4;
			protocol = next;
		} else if (protocol == IPPROTO_IPV6) {
			if (bpf_skb_load_bytes(skb, base + at + 6, &next, 1))
				return at;
			at += 40;
			protocol = next;
		} else {
			break;
		}
	}
	return at;
}

APART __u32 segmented_bytes(struct __sk_buff *skb, const struct packet *p, __u32 bytes)
{
	__u32 headers = repeated_bytes(skb, p), segments = skb->gso_segs, size = skb->gso_size;

	if (p->v6 && bytes > 0xffff + 40 && p->transport == 48) { /* Linux's own jumbogram option isn't sent out */
		headers -= 8;
		bytes -= 8;
	}
	if (!segments && size && bytes > headers)                 /* from a tun or a guest: the segments aren't counted yet */
		segments = (bytes - headers + size - 1) / size;
	return segments > 1 ? bytes + (segments - 1) * headers : bytes;
}

/* A VLAN interface's frames also pass the hooks of the interface below it, where they show the tag. They are metered at
 * the VLAN interface alone. */
INLINE int is_tagged(struct __sk_buff *skb)
{
	return skb->vlan_present && (skb->vlan_tci & 0xfff);
}

/* Return the flags of an interface; 0 for an upstream one. */
INLINE __u32 class_of(__u32 ifindex)
{
	__u32 *flags = bpf_map_lookup_elem(&ngp_interfaces, &ifindex);

	return flags ? *flags : 0;
}

INLINE int has_link_addresses(const struct config *config, __u32 ifindex)
{
	return !(config->flags & LAYER3) || (class_of(ifindex) & LINK_ADDRESSES);
}

/* Read the headers where they are, which saves a helper call. That works only at an interface's hooks. Returns 0 if the
 * headers aren't in one piece. */
INLINE int read_in_place(struct __sk_buff *skb, int v6, struct frame *f)
{
	const void *data = (const void *)(long)skb->data, *end = (const void *)(long)skb->data_end;
	const __u16 *link = data;

	if (data + ETH_HLEN + (v6 ? 40 : 20) > end)
		return 0;
	for (int i = 0; i < 3; i++) {
		f->to[i] = link[i];
		f->from[i] = link[3 + i];
	}
	f->type = link[6];
	if (v6)
		f->ip.v6 = *(const struct ipv6 *)(data + ETH_HLEN);
	else
		f->ip.v4 = *(const struct ipv4 *)(data + ETH_HLEN);
	return 1;
}

APART struct neighbour *find_neighbour(const struct packet *p)
{
	struct link key = p->link;                                /* Linux 6.1 takes no pointer into an argument as a key */

	return bpf_map_lookup_elem(&ngp_neighbours, &key);
}

/* A neighbour with several links is one customer: a packet on any of its links is treated like one on its first
 * link. */
APART int use_first_link(struct packet *p)
{
	struct neighbour *neighbour = find_neighbour(p);

	if (neighbour && neighbour->first.ifindex)
		p->link = neighbour->first;
	return 0;
}

/* Read link and IP headers. Returns 0 for a packet that isn't IP, or whose headers can't be read. Tenants have no links:
 * the tunnel vouches for their addresses. */
INLINE int parse(struct __sk_buff *skb, const struct config *config, enum hook hook, struct packet *p)
{
	__u32 link_bytes = hook != TUNNEL && has_link_addresses(config, skb->ifindex) ? ETH_HLEN : 0, bytes, said;
	__be16 type = skb->protocol;
	const __u16 *mac;
	struct frame f;
	long failed;

	p->v6 = type == bpf_htons(ETH_P_IPV6);
	if (!p->v6 && type != bpf_htons(ETH_P_IP))
		return 0;
	p->base = hook == FORWARD ? 0 : link_bytes;
	p->link.ifindex = hook == TUNNEL ? 0 : skb->ifindex;
	if (link_bytes) {
		/* One read for both headers, since each read is a helper call. At FORWARD the destination MAC isn't needed, so
		 * the copy begins at the source MAC. It is then aligned to 8 bytes, so no read below spans two copied words:
		 * the processor would have to wait until both are stored. */
		if (hook == FORWARD)
			failed = p->v6 ? bpf_skb_load_bytes_relative(skb, ETH_ALEN, f.from, 8 + 40, BPF_HDR_START_MAC)
				       : bpf_skb_load_bytes_relative(skb, ETH_ALEN, f.from, 8 + 20, BPF_HDR_START_MAC);
		else if (read_in_place(skb, p->v6, &f))
			failed = 0;
		else
			failed = p->v6 ? bpf_skb_load_bytes(skb, 0, f.to, ETH_HLEN + 40)
				       : bpf_skb_load_bytes(skb, 0, f.to, ETH_HLEN + 20);
		if (failed)
			return 0;
		mac = hook == EGRESS ? f.to : f.from;
		p->link.mac_head = pair(mac[0], mac[1]);
		p->link.mac_tail_role = pair(mac[2], 0);
		p->group = hook != FORWARD && (((__u8 *)f.to)[0] & 1);
	}
	if (!link_bytes || f.type != type) {                      /* other headers are between link and IP header */
		failed = p->v6 ? bpf_skb_load_bytes_relative(skb, 0, &f.ip, 40, BPF_HDR_START_NET)
			       : bpf_skb_load_bytes_relative(skb, 0, &f.ip, 20, BPF_HDR_START_NET);
		if (failed)
			return 0;
	}
	if (p->v6) {
		said = bpf_ntohs(f.ip.v6.payload_bytes) + 40;
		if (said == 40 && f.ip.v6.next == IPPROTO_HOPOPTS) /* a jumbogram */
			said = 0;
		__builtin_memcpy(p->source, f.ip.v6.source, 16);
		__builtin_memcpy(p->destination, f.ip.v6.destination, 16);
		p->protocol = f.ip.v6.next;
		p->transport = 40;
		if (is_extension(p->protocol))
			skip_extensions(skb, p);
	} else {
		said = bpf_ntohs(f.ip.v4.bytes);
		p->source[0] = f.ip.v4.source;
		p->destination[0] = f.ip.v4.destination;
		p->protocol = f.ip.v4.fragment & bpf_htons(0x1fff) ? LATER_FRAGMENT : f.ip.v4.protocol;
		p->transport = (f.ip.v4.version_words & 15) * 4;
		p->goes_on = p->protocol != LATER_FRAGMENT && (f.ip.v4.fragment & bpf_htons(0x2000));
		p->number = f.ip.v4.id;
	}
	if (p->protocol == (p->v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP))
		read_error(skb, p);
	bytes = skb->len - p->base;
	if (skb->gso_size)
		bytes = segmented_bytes(skb, p, bytes);
	else if (hook != FORWARD && said && said < bytes)
		bytes = said;
	p->bytes = bytes;
	if (config->flags & SEVERAL_LINKS)
		use_first_link(p);
	return 1;
}

INLINE __u64 mix(__u64 hash, __u64 words)
{
	hash = (hash ^ words) * 0x9e3779b97f4a7c15ull;
	return hash ^ hash >> 29;
}

/* Return the address whose contract covers a download: the source, or, for an ICMP error, the quoted destination. */
INLINE const __u32 *remote(const struct packet *p)
{
	return p->error ? p->quoted : p->source;
}

INLINE int has_ports(__u32 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP ||
	       protocol == IPPROTO_UDPLITE || protocol == IPPROTO_DCCP;
}

APART int read_ports(struct __sk_buff *skb, const struct packet *p, __be16 *ports)
{
	if (!has_ports(p->protocol) || bpf_skb_load_bytes(skb, p->base + p->transport, ports, 4))
		return 0;
	if (p->sent_port)
		ports[1] = p->sent_port;
	return 1;
}

#endif
