"""What it means for privacy that a round does not wait for all: whose message was late reaches the model.

When a message arrives follows from its length, and that from the message: from symbols, scales and shared
words, not from the decoded update alone. So what is released is a function of the messages and of what is
public (rates, examples, who was drawn, what was released before), and no longer of decoded updates. Noise
that hides the decoded update from outsiders because they do not know the shared words does not hide who was
late: LRSUQ's scales are measured on the update itself. What does hide it is noise that hides the message from
those who know the shared words, `About.server`: noise from the client's private key, before anything is
quantized or measured. A client then keeps, against everybody, the guarantee of its own private noise
(post-processing). It is counted as spent where it was late, too: its message was sent. Noise of others is not
counted: fewer may arrive. And nothing is counted on draws that are hidden. docs/links.md has more.
"""

from cepam_jax.mechanisms import About


def about_with(about: About, ends: str) -> About:
    """What a mechanism states where the messages decide who is late: outsiders face private noise alone.

    Args:
      about: of the mechanism.
      ends: one of `links.ENDS`.
    """
    if ends == "slowest" or about.server is None:
        return about
    return about._replace(outsiders=about.server)


def refused(about: About, ends: str) -> tuple[str, ...]:
    """Why nothing is guaranteed where some may be late; () where something is."""
    if ends == "slowest" or about.server is not None:
        return ()
    return (
        f"a round ends before all messages have arrived (config.links.ends is {ends!r}): who is late follows "
        f"from the lengths of messages, and {about.name} has no noise of a client's own key that would hide "
        "them",
    )
