defmodule Snakepit.SharedMemory.Options do
  @moduledoc false
  # Options as keyword lists or maps, checked against a schema before anything is done. A message
  # names the option, what is expected and what came, and what was probably meant.
  #
  # A schema is a keyword list: `option: {type, default}`. An option may hold options itself
  # (`{:options, schema}`); those are checked and filled in the same way, whatever holds them, and
  # a message names the path to them.

  alias Snakepit.SharedMemory.{Dtype, Error, Permissions}

  @type schema :: [{atom(), {type(), term()}}]
  @type type ::
          :string
          | :boolean
          | :pid
          | :map
          | :shape
          | :dtype
          | :active
          | :strings
          | :permissions
          | :timeout
          | :nodes
          | :atom
          | :datetime
          | :term
          | {:integer, integer(), integer() | :infinity}
          | {:in, [term()]}
          | {:nilable, type()}
          | {:tuple, [type()]}
          | {:either, [type()]}
          | {:options, schema()}
          | {:each, schema()}

  @doc "All options of the schema, defaults filled in."
  @spec validate(term(), schema(), atom()) :: {:ok, map()} | {:error, Error.t()}
  def validate(options, schema, operation), do: check_all(options, schema, [], operation)

  @doc "What a schema yields when nothing is given."
  @spec defaults(schema()) :: map()
  def defaults(schema) do
    for {name, {type, default}} <- schema, into: %{}, do: {name, default(type, default)}
  end

  defp default({:options, inner}, _default), do: defaults(inner)
  defp default(_type, default), do: default

  defp check_all(options, schema, path, operation) do
    with {:ok, pairs} <- pairs(options, path, operation) do
      Enum.reduce_while(pairs, {:ok, defaults(schema)}, fn {name, value}, {:ok, checked} ->
        case check(name, value, schema, path, operation) do
          {:ok, value} -> {:cont, {:ok, Map.put(checked, name, value)}}
          {:error, error} -> {:halt, {:error, error}}
        end
      end)
    end
  end

  defp pairs(options, _path, _operation) when is_map(options) and not is_struct(options) do
    {:ok, Map.to_list(options)}
  end

  defp pairs(options, path, operation) do
    if Keyword.keyword?(options) do
      {:ok, options}
    else
      {:error, invalid(named(path), "a keyword list or a map", options, operation)}
    end
  end

  defp check(name, value, schema, path, operation) do
    case is_atom(name) && Keyword.fetch(schema, name) do
      {:ok, {{:options, inner}, _default}} ->
        check_all(value, inner, path ++ [name], operation)

      {:ok, {type, _default}} ->
        if valid?(type, value) do
          {:ok, value}
        else
          {:error, invalid(named(path ++ [name]), expected(type), value, operation)}
        end

      _ ->
        {:error, unknown(name, path, Keyword.keys(schema), operation)}
    end
  end

  defp named([]), do: "options"
  defp named(path), do: "option " <> Enum.map_join(path, ", ", &inspect/1)

  defp valid?(:string, value), do: is_binary(value) and String.valid?(value)
  defp valid?(:boolean, value), do: is_boolean(value)
  defp valid?(:pid, value), do: is_pid(value) and node(value) == node()
  defp valid?(:map, value), do: is_map(value)
  defp valid?(:dtype, value), do: match?({:ok, _}, Dtype.to_string(value))
  defp valid?(:active, value), do: is_boolean(value) or value == :once or count?(value)
  defp valid?(:shape, value), do: proper_list?(value) and Enum.all?(value, &dimension?/1)
  defp valid?(:strings, value), do: proper_list?(value) and Enum.all?(value, &valid?(:string, &1))
  defp valid?(:permissions, value), do: match?({:ok, _}, Permissions.mode(value))
  defp valid?(:timeout, value), do: value in [nil, :default] or milliseconds?(value)
  defp valid?(:nodes, [_ | _] = value), do: proper_list?(value) and Enum.all?(value, &node?/1)
  defp valid?(:nodes, _value), do: false
  defp valid?(:atom, value), do: is_atom(value) and value not in [nil, true, false]
  # Checked by whoever takes it.
  defp valid?(:term, _value), do: true
  defp valid?(:datetime, value), do: is_struct(value, DateTime)
  defp valid?({:in, values}, value), do: value in values
  defp valid?({:nilable, type}, value), do: is_nil(value) or valid?(type, value)
  defp valid?({:either, types}, value), do: Enum.any?(types, &valid?(&1, value))

  # Kept as they are: what an entry does not say has no default here.
  defp valid?({:each, schema}, value) do
    is_map(value) and not is_struct(value) and
      Enum.all?(value, fn {name, options} ->
        is_atom(name) and match?({:ok, _}, check_all(options, schema, [], nil))
      end)
  end

  defp valid?({:tuple, types}, value) do
    is_tuple(value) and tuple_size(value) == length(types) and
      Enum.all?(Enum.zip(types, Tuple.to_list(value)), fn {type, value} -> valid?(type, value) end)
  end

  defp valid?({:integer, low, high}, value) do
    # An integer is less than any atom: :infinity is a bound that nothing exceeds.
    is_integer(value) and value >= low and value <= high
  end

  # Up to a century.
  defp milliseconds?(value), do: is_integer(value) and value in 1..3_155_760_000_000
  defp count?(value), do: is_integer(value) and value in 1..0xFFFFFFFF
  defp node?(value), do: is_integer(value) and value in 0..0xFFFFFFFF
  defp dimension?(value), do: is_integer(value) and value in 0..0xFFFFFFFF
  defp proper_list?(value), do: is_list(value) and List.improper?(value) == false

  defp expected(:string), do: "a string"
  defp expected(:boolean), do: "true or false"
  defp expected(:pid), do: "a pid of this node"
  defp expected(:map), do: "a map"
  defp expected(:dtype), do: ~s(an element type such as :f32, {:f, 32} or "<f4")
  defp expected(:active), do: "true, false, :once or a positive count"
  defp expected(:shape), do: "a list of non-negative integers"
  defp expected({:in, [value]}), do: inspect(value)
  defp expected(:strings), do: "a list of strings"
  defp expected(:permissions), do: Permissions.expected()
  defp expected(:timeout), do: "a positive number of milliseconds, or nil for never"
  defp expected(:nodes), do: "a list of numbers of nodes"
  defp expected(:atom), do: "an atom, such as the name of a module"
  defp expected(:datetime), do: "a DateTime"
  defp expected({:in, values}), do: "one of #{Enum.map_join(values, ", ", &inspect/1)}"
  defp expected({:nilable, type}), do: expected(type)

  defp expected({:each, schema}) do
    options =
      Enum.map_join(schema, ", ", fn {name, {type, _}} -> "#{name}: #{expected(type)}" end)

    "a map of names to options (#{options})"
  end

  defp expected({:either, types}), do: Enum.map_join(types, " or ", &expected/1)
  defp expected({:tuple, types}), do: "{#{Enum.map_join(types, ", ", &expected/1)}}"
  defp expected({:integer, low, :infinity}), do: "an integer of at least #{low}"
  defp expected({:integer, low, high}), do: "an integer from #{low} to #{high}"

  @doc "The error for a value that is not what was expected."
  @spec invalid(String.t(), String.t(), term(), atom()) :: Error.t()
  def invalid(what, expectation, value, operation) do
    shown = inspect(value, limit: 5, printable_limit: 60)

    Error.new(:invalid_option, "invalid #{what}: expected #{expectation}, got: #{shown}",
      operation: operation,
      remedy: "pass #{expectation}",
      additional_info: %{option: what, expected: expectation, got: shown}
    )
  end

  defp unknown(name, path, known, operation) do
    options = Enum.map_join(known, ", ", &inspect/1)
    option = Enum.map_join(path ++ [name], ", ", &inspect(&1, limit: 5, printable_limit: 60))

    Error.new(:invalid_option, "unknown option #{option}#{did_you_mean(name, known)}",
      operation: operation,
      remedy: if(known == [], do: "this call takes no options", else: "there are: #{options}")
    )
  end

  defp did_you_mean(name, known) when is_atom(name) or is_binary(name) do
    text = to_string(name)

    known
    |> Enum.map(&{String.jaro_distance(text, Atom.to_string(&1)), &1})
    |> Enum.max(fn -> {0.0, nil} end)
    |> case do
      {distance, nearest} when distance > 0.75 -> ", did you mean #{inspect(nearest)}?"
      _ -> ""
    end
  end

  defp did_you_mean(_name, _known), do: ""
end
