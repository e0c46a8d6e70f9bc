defmodule Chaos.Value do
  @moduledoc false
  # Values that say of themselves whether they are whole, as in `peer/src/value.rs`.

  @magic 0x5341_4843_5641_4C31
  @head 4
  @mask 0xFFFF_FFFF_FFFF_FFFF
  @longest 65_536

  def name(seg) when rem(seg, 2) == 0, do: "s-#{div(seg, 2)}"
  def name(seg), do: "s-#{div(seg, 2)}_data"
  def capacity(seg), do: elem({4096, 16_384, 65_536, 262_144, 1_048_576}, rem(seg, 5))
  def slots(seg), do: 1 + rem(seg, 4)
  def integrity(seg), do: if(rem(seg, 3) == 0, do: :crc32c, else: :none)

  def whole(seg, tag, version, uid) do
    longest = min(capacity(seg), @longest)
    noise = :rand.bytes(8 * :rand.uniform(div(longest, 8) - @head - 1))

    body =
      <<@magic::64-little, tag::64-little, version::64-little, seg::32-little, uid::32-little,
        noise::binary>>

    body <> <<rem(@mask + 1 - sum(body), @mask + 1)::64-little>>
  end

  # Where, what, and the value afterwards.
  def patch(seg, value) do
    room = div(min(capacity(seg), @longest), 8)
    offset = @head + :rand.uniform(room - @head - 2) - 1
    words = 1 + :rand.uniform(min(511, room - offset - 1))
    {from, till} = {8 * offset, 8 * (offset + words)}
    size = byte_size(value)
    front = binary_part(value, 0, min(from, size)) <> zeros(from - size)
    covered = if size > from, do: binary_part(value, from, min(till, size) - from), else: ""
    back = if size > till, do: binary_part(value, till, size - till), else: ""
    noise = :rand.bytes(8 * (words - 1))
    last = Bitwise.band(sum(covered) + (@mask + 1) - sum(noise), @mask)
    data = noise <> <<last::64-little>>
    {from, data, front <> data <> back}
  end

  defp zeros(n) when n > 0, do: :binary.copy(<<0>>, n)
  defp zeros(_), do: ""

  def tag(<<@magic::64-little, tag::64-little, _::binary>>), do: tag
  def tag(_), do: 0

  def fault(value, seg, tag) do
    case value do
      _ when rem(byte_size(value), 8) != 0 or byte_size(value) < 8 * (@head + 1) -> 1
      <<magic::64-little, _::binary>> when magic != @magic -> 2
      <<_::64, found::64-little, _::binary>> when found != tag -> 3
      <<_::192, found::32-little, _::binary>> when found != seg -> 4
      _ -> if sum(value) == 0, do: 0, else: 5
    end
  end

  defp sum(bytes), do: sum(bytes, 0)
  defp sum(<<word::64-little, rest::binary>>, n), do: sum(rest, Bitwise.band(n + word, @mask))
  defp sum(_, n), do: n
end
