defmodule Snakepit.SharedMemory.ErrorSnakepitTest do
  # Puts a module of Snakepit's name into the VM.
  use ExUnit.Case, async: false

  alias Snakepit.SharedMemory
  alias Snakepit.SharedMemory.Error

  # The constructors that Snakepit's module has, and its fields; nothing else of it is used.
  defp with_snakepit(fun) do
    refute Code.ensure_loaded?(Snakepit.Error)

    body =
      quote do
        defstruct [:category, :message, :details, :python_traceback, :grpc_status]
        def timeout_error(message, details), do: make(:timeout, message, details)
        def validation_error(message, details), do: make(:validation, message, details)
        def pool_error(message, details), do: make(:pool, message, details)

        defp make(category, message, details) do
          %{__struct__: __MODULE__, category: category, message: message, details: details}
          |> Map.merge(%{python_traceback: nil, grpc_status: nil})
        end
      end

    Module.create(Snakepit.Error, body, Macro.Env.location(__ENV__))

    try do
      fun.()
    after
      :code.purge(Snakepit.Error)
      :code.delete(Snakepit.Error)
      :code.purge(Snakepit.Error)
    end
  end

  test "R10.5 with Snakepit an error becomes one of its own" do
    {:error, error} = SharedMemory.read("nobody")

    with_snakepit(fn ->
      converted = Error.to_snakepit(error)
      assert converted.__struct__ == Snakepit.Error
      assert converted.category == :pool
      assert converted.message =~ "nobody"
      assert converted.message =~ "remedy: "

      assert %{
               reason: :not_found,
               class: :region_not_found,
               subsystem: :shared_memory,
               region_id: "nobody",
               operation: :read,
               platform: :linux,
               timestamp: %DateTime{}
             } = converted.details

      assert converted.details.process_id == self()

      for {code, category} <- [
            timeout: :timeout,
            deadline_violation: :timeout,
            invalid_option: :validation,
            out_of_bounds: :validation,
            resource_exhausted: :pool,
            corrupted: :pool,
            not_started: :pool
          ] do
        assert Error.to_snakepit(Error.new(code, "x")).category == category
        assert Error.to_snakepit(Error.new(code, "x")).message == "x"
      end
    end)
  end

  test "R10.5 without Snakepit it stays what it is" do
    error = Error.new(:timeout, "x", operation: :read)
    assert Error.to_snakepit(error) == error
  end

  test "R10.5 every code can be converted" do
    with_snakepit(fn ->
      for code <- Error.codes() do
        converted = Error.to_snakepit(Error.new(code, "x"))
        assert converted.category in [:timeout, :validation, :pool]
        assert converted.details.reason == code
      end
    end)
  end
end
