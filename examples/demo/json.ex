defmodule Demo.JSON do
  @moduledoc """
  JSON (RFC 8259), small and strict: what a handle and the demo's messages need on an OTP that has no `:json`.

  An application uses Jason or, from OTP 27 on, `:json`.
  """

  import Bitwise

  # What ends a string, or cannot be in one as it is.
  @special for char <- Enum.concat(0..0x1F, [?", ?\\]), do: <<char>>

  # Up to here a text is looked at byte by byte; from here on the search is worth being set up.
  @short 256

  @doc "The JSON text of maps with string or atom keys, lists, strings, numbers, booleans and `nil`, as one line."
  @spec encode(term()) :: binary()
  def encode(term), do: IO.iodata_to_binary(write(term))

  @doc "The term a JSON text stands for: objects are maps with string keys."
  @spec decode(binary()) :: {:ok, term()} | {:error, String.t()}
  def decode(text) when is_binary(text) do
    {value, rest} = value(skip(text))

    case skip(rest) do
      "" -> {:ok, value}
      more -> {:error, "more text after the value: #{excerpt(more)}"}
    end
  catch
    {:json, reason} -> {:error, reason}
  end

  # --- writing ---

  defp write(nil), do: "null"
  defp write(true), do: "true"
  defp write(false), do: "false"
  defp write(atom) when is_atom(atom), do: write(Atom.to_string(atom))
  defp write(number) when is_integer(number), do: Integer.to_string(number)
  defp write(number) when is_float(number), do: Float.to_string(number)
  defp write(text) when is_binary(text), do: [?", escape(text), ?"]

  defp write(list) when is_list(list),
    do: [?[, list |> Enum.map(&write/1) |> Enum.intersperse(?,), ?]]

  defp write(%{} = map) do
    members = for {key, value} <- map, do: [write(to_string(key)), ?:, write(value)]
    [?{, Enum.intersperse(members, ?,), ?}]
  end

  # Text without anything to escape, base64 for one, is not taken apart.
  defp escape(text) do
    if String.valid?(text) and special(text) == :nomatch,
      do: text,
      else: text |> String.to_charlist() |> Enum.map(&escape_char/1)
  end

  defp escape_char(?"), do: "\\\""
  defp escape_char(?\\), do: "\\\\"
  defp escape_char(?\n), do: "\\n"

  defp escape_char(char) when char < 0x20,
    do: ["\\u", char |> Integer.to_string(16) |> String.pad_leading(4, "0")]

  defp escape_char(char), do: <<char::utf8>>

  # --- reading ---

  defp value(<<?{, rest::binary>>), do: object(skip(rest), %{})
  defp value(<<?[, rest::binary>>), do: array(skip(rest), [])
  defp value(<<?", rest::binary>>), do: text(rest)
  defp value(<<"true", rest::binary>>), do: {true, rest}
  defp value(<<"false", rest::binary>>), do: {false, rest}
  defp value(<<"null", rest::binary>>), do: {nil, rest}

  defp value(<<digit, rest::binary>> = text) when digit in ?1..?9 do
    case digits(rest, digit - ?0) do
      {_number, <<char, _::binary>>} when char in [?., ?e, ?E] -> number(text)
      {number, rest} -> {number, rest}
    end
  end

  defp value(text), do: number(text)

  defp digits(<<digit, rest::binary>>, number) when digit in ?0..?9,
    do: digits(rest, number * 10 + digit - ?0)

  defp digits(rest, number), do: {number, rest}

  defp number(text) do
    case Regex.run(~r/\A-?(?:0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?/, text) do
      nil -> fail("expected a value at: #{excerpt(text)}")
      [digits] -> {String.to_integer(digits), after_prefix(text, digits)}
      [digits, fraction | _] -> {float(digits, fraction), after_prefix(text, digits)}
    end
  end

  # Erlang wants a fraction before an exponent.
  defp float(digits, fraction) do
    digits = if fraction == "", do: String.replace(digits, ~r/[eE]/, ".0e"), else: digits

    case Float.parse(digits) do
      {float, ""} -> float
      _ -> fail("a number that is too large: #{digits}")
    end
  rescue
    ArgumentError -> fail("a number that is too large: #{digits}")
  end

  defp object(<<?}, rest::binary>>, map) when map == %{}, do: {map, rest}

  defp object(<<?", rest::binary>>, map) do
    {key, rest} = text(rest)

    case skip(rest) do
      <<?:, rest::binary>> ->
        {value, rest} = value(skip(rest))
        map = Map.put(map, key, value)

        case skip(rest) do
          <<?,, rest::binary>> -> object(skip(rest), map)
          <<?}, rest::binary>> -> {map, rest}
          other -> fail("expected , or } at: #{excerpt(other)}")
        end

      other ->
        fail("expected : at: #{excerpt(other)}")
    end
  end

  defp object(other, _map), do: fail("expected a key at: #{excerpt(other)}")

  defp array(<<?], rest::binary>>, []), do: {[], rest}

  defp array(text, items) do
    {item, rest} = value(text)

    case skip(rest) do
      <<?,, rest::binary>> -> array(skip(rest), [item | items])
      <<?], rest::binary>> -> {Enum.reverse([item | items]), rest}
      other -> fail("expected , or ] at: #{excerpt(other)}")
    end
  end

  # A string without an escape is a part of the text, whatever its length.
  defp text(rest) do
    with {at, 1} <- special(rest),
         <<found::binary-size(at), ?", rest::binary>> <- rest,
         true <- String.valid?(found) do
      {found, rest}
    else
      _ -> string(rest, [])
    end
  end

  # Where the first character is that ends a string, or cannot be in one as it is.
  defp special(text), do: special(text, text, 0)

  defp special(<<char, rest::binary>>, text, at)
       when char >= 0x20 and char != ?" and char != ?\\ and at < @short,
       do: special(rest, text, at + 1)

  defp special("", _text, _at), do: :nomatch
  defp special(_rest, _text, at) when at < @short, do: {at, 1}
  defp special(_rest, text, _at), do: :binary.match(text, @special)

  defp string(<<?", rest::binary>>, chars),
    do: {chars |> Enum.reverse() |> IO.iodata_to_binary(), rest}

  defp string(<<?\\, ?u, rest::binary>>, chars) do
    {char, rest} = code_point(rest)
    string(rest, [<<char::utf8>> | chars])
  end

  defp string(<<?\\, char, rest::binary>>, chars), do: string(rest, [unescape(char) | chars])

  defp string(<<char, _::binary>>, _chars) when char < 0x20,
    do: fail("a control character in a string")

  defp string(<<char::utf8, rest::binary>>, chars), do: string(rest, [<<char::utf8>> | chars])
  defp string(_rest, _chars), do: fail("a string that does not end, or is not UTF-8")

  defp code_point(text) do
    case hex(text) do
      {high, <<"\\u", rest::binary>>} when high in 0xD800..0xDBFF ->
        case hex(rest) do
          {low, rest} when low in 0xDC00..0xDFFF ->
            {0x10000 + ((high &&& 0x3FF) <<< 10) + (low &&& 0x3FF), rest}

          _ ->
            fail("half of a surrogate pair")
        end

      {char, _rest} when char in 0xD800..0xDFFF ->
        fail("half of a surrogate pair")

      found ->
        found
    end
  end

  defp hex(<<digits::binary-4, rest::binary>>) do
    case Regex.match?(~r/\A[0-9a-fA-F]{4}\z/, digits) do
      true -> {String.to_integer(digits, 16), rest}
      false -> fail("not four hexadecimal digits: #{excerpt(digits)}")
    end
  end

  defp hex(_short), do: fail("a string that ends within an escape")

  defp unescape(?n), do: ?\n
  defp unescape(?t), do: ?\t
  defp unescape(?r), do: ?\r
  defp unescape(?b), do: ?\b
  defp unescape(?f), do: ?\f
  defp unescape(char) when char in [?", ?\\, ?/], do: char
  defp unescape(char), do: fail("unknown escape: \\#{<<char>>}")

  defp skip(<<char, rest::binary>>) when char in [?\s, ?\t, ?\r, ?\n], do: skip(rest)
  defp skip(text), do: text

  defp after_prefix(text, prefix),
    do: binary_part(text, byte_size(prefix), byte_size(text) - byte_size(prefix))

  defp excerpt(text), do: inspect(text, printable_limit: 40)

  @spec fail(String.t()) :: no_return()
  defp fail(reason), do: throw({:json, reason})
end
